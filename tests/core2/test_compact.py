"""The compact noise model: identities of its inputs, sizes of any kind, and its file."""

from __future__ import annotations

import json
import math

import pytest
import tiny
import torch
from noise_models import compact
from safetensors.torch import save_file
from torch import nn

from w2sdiff.core2 import Given, NoiseModel, load_noise_model, save_noise_model
from w2sdiff.core2.compact import CompactConfig, CompactNoiseModel, flops_of
from w2sdiff.core2.noise_model import FORMAT, Host, read_header
from w2sdiff.errors import InputError
from w2sdiff.levels import Levels

PREDICTIONS = ("epsilon", "sample", "v", "flow")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def asked(batch=2, shape=(4, 6, 6), tokens=5, seed=0, **changes):
    """A prediction, and what goes with it."""
    x, c = draw(2, batch, *shape, seed=seed).unbind()
    text = draw(batch, tokens, 32, seed=seed + 1)
    return c, Given(**({"x": x, "alpha": 0.8, "sigma": 0.6, "text": text} | changes))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("shape", [(4, 6, 6), (4, 3, 6, 6), (9, 4)], ids=["4-D", "5-D", "packed"])
def test_an_untrained_model_predicts_c_itself(prediction, shape):
    model = CompactNoiseModel(CompactConfig(4, prediction, 32, width=16))
    model.calibrate([-1.0, 1.0], [3.0, 5.0], 2.0)
    c, given = asked(shape=shape)
    assert torch.equal(model(c, given), c)
    assert model.unit(c, given).abs().max() == 0


def test_a_trained_one_does_not():
    c, given = asked()
    assert (compact()(c, given) - c).abs().mean() > 0.01


@pytest.mark.parametrize(
    "shape", [(4, 6, 10), (4, 2, 2), (4, 16, 4), (4, 3, 6, 4)], ids=lambda s: "x".join(map(str, s))
)
@pytest.mark.parametrize("patch", [1, 2])
def test_any_size_of_latents(shape, patch):
    c, given = asked(shape=shape)
    found = compact(patch=patch)(c, given)
    assert found.shape == c.shape
    assert found.isfinite().all()


def test_a_size_that_the_patch_does_not_divide_is_refused():
    c, given = asked(shape=(4, 6, 5))
    with pytest.raises(InputError, match=r"6x5.*patch 2"):
        compact(patch=2)(c, given)


def test_what_happens_at_one_place_is_seen_at_the_others_and_in_order():
    """Attention mixes the tokens, and positions tell them apart."""
    model = compact()
    c, given = asked(batch=1)
    base = model(c, given) - c
    changed = c.clone()
    changed[..., 0, 0] += 1
    there = (model(changed, given) - changed - base).abs()
    assert there[..., 5, 5].max() > 1e-6
    turned = given.map(lambda name, t: t.flip(-1) if name == "x" else t)
    assert not torch.allclose(model(c.flip(-1), turned).flip(-1) - c, base, rtol=1e-3)


def test_packed_latents_are_the_same_tokens_as_a_grid():
    """[B, N, C] with each token's row and column, against [B, C, H, W] with a patch of one."""
    model = compact(patch=1)
    c, given = asked(shape=(4, 5, 7))
    packed = lambda t: t.flatten(2).transpose(1, 2)  # noqa: E731
    places = torch.cartesian_prod(torch.arange(5), torch.arange(7)).float()
    other = Given(packed(given.x), 0.8, 0.6, given.text, positions=places)
    torch.testing.assert_close(
        model(packed(c), other), packed(model(c, given)), rtol=1e-5, atol=1e-5
    )


def test_a_video_of_one_frame_is_a_picture():
    model = compact(patch=2)
    c, given = asked()
    video = given.map(lambda name, t: t[:, :, None] if name == "x" else t)
    torch.testing.assert_close(
        model(c[:, :, None], video)[:, :, 0], model(c, given), rtol=1e-5, atol=1e-5
    )


def test_a_batch_is_its_items_also_at_levels_of_their_own():
    model = compact()
    c, given = asked(
        batch=3, alpha=torch.tensor([0.1, 0.5, 0.9]), sigma=torch.tensor([0.99, 0.8, 0.3])
    )
    whole = model(c, given)
    for i in range(3):
        one = Given(
            given.x[i : i + 1],
            float(given.alpha[i]),
            float(given.sigma[i]),
            given.text[i : i + 1],
        )
        torch.testing.assert_close(model(c[i : i + 1], one), whole[i : i + 1], rtol=1e-5, atol=1e-5)


def test_what_is_masked_does_not_matter_and_what_is_not_does():
    model = compact()
    c, given = asked(tokens=6, mask=torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]]))
    found = model(c, given)
    noisy = given.text + 100 * draw(2, 6, 32, seed=9) * (1 - given.mask)[..., None]
    torch.testing.assert_close(
        model(c, given.map(lambda name, t: noisy if name == "text" else t)),
        found,
        rtol=1e-5,
        atol=1e-5,
    )
    other = given.map(lambda name, t: t.roll(1, 0) if name == "text" else t)
    assert not torch.allclose(model(c, other), found, rtol=1e-3)
    for kind in (torch.bool, torch.float32):
        same = given.map(lambda name, t, kind=kind: t.to(kind) if name == "mask" else t)
        assert torch.equal(model(c, same), found)
    short = given.map(
        lambda name, t: t[:, :4] if name in ("text", "mask") else t
    )  # where all of them are padding
    torch.testing.assert_close(model(c, short), found, rtol=1e-5, atol=1e-5)


def test_a_host_without_text():
    model = compact(text_width=None)
    c, given = asked()
    without = Given(given.x, 0.8, 0.6)
    assert torch.equal(model(c, given), model(c, without))
    assert all(parameter.requires_grad for parameter in model.parameters())
    model(c, without).sum().backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert not unused, "parameters that several processes would wait for"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """To the precision of the type: 8 or 11 bits, through a dozen layers."""
    model = compact()
    c, given = asked()
    expected = model(c, given)
    half = compact().to(dtype)
    found = half(c.to(dtype), given.map(lambda _, t: t.to(dtype)))
    assert found.dtype == dtype
    bits = 8 if dtype == torch.bfloat16 else 11
    added = float((expected - c).abs().max())
    assert float((found.float() - expected).abs().max()) < (
        24 * 2.0**-bits * max(added, float(c.abs().max()))
    )


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("angle", [0.1, 0.7, 1.3])
def test_the_x0_it_sees_is_that_of_the_levels(prediction, angle):
    """By `Levels.convert`, which knows nothing of this model."""
    alpha, sigma = math.cos(angle), math.sin(angle)
    if prediction == "flow":
        alpha, sigma = 1 - angle / 1.6, angle / 1.6
    levels = Levels(
        torch.tensor([alpha, 1.0], dtype=torch.float64),
        torch.tensor([sigma, 0.0], dtype=torch.float64),
        torch.ones(2),
        prediction,
        torch.tensor([0.0]),
    )
    c, given = asked(alpha=alpha, sigma=sigma)
    model = compact(prediction=prediction)
    model.calibrate([-1.0, 1.0], [1.0, 1.0], 2.0)
    x0, _ = levels.convert(given.x, c, at=0)
    seen = model._seen(c, given)[2]
    torch.testing.assert_close(seen, (x0 / 2).clamp(-5, 5), rtol=1e-4, atol=1e-4)


def test_pure_noise_says_nothing_and_is_not_infinite():
    for prediction in PREDICTIONS:
        c, given = asked(alpha=0.0, sigma=1.0)
        assert compact(prediction=prediction)(c, given).isfinite().all()
        c, given = asked(alpha=1.0, sigma=0.0)
        assert compact(prediction=prediction)(c, given).isfinite().all()


def test_the_size_at_a_level_is_between_those_measured():
    model = compact()
    model.calibrate([-2.0, 0.0, 4.0], [8.0, 2.0, 0.5], 1.0)
    c, _ = asked()

    def size(log_snr):
        alpha = math.sqrt(1 / (1 + math.exp(-log_snr)))
        return float(model.size_at(Given(c, alpha, math.sqrt(1 - alpha**2)), c))

    for at, expected in (
        (-2.0, 8.0),
        (0.0, 2.0),
        (4.0, 0.5),
        (-1.0, 4.0),  # halfway in logarithms
        (2.0, 1.0),
        (-9.0, 8.0),
        (9.0, 0.5),
    ):
        assert size(at) == pytest.approx(expected, rel=1e-4)
    model.calibrate([0.0, 1.0], [0.0, 0.0], 0.0)  # nothing to learn, nothing to see
    c, given = asked()
    assert model(c, given).isfinite().all()


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"channels": 0}, "channels of a noise model is at least 1"),
        ({"depth": 0}, "depth"),
        ({"width": 12}, "multiple of 8"),
        ({"width": 24, "heads": 5}, "its 5 heads"),
        ({"patch": 0}, "patch"),
        ({"hidden": 1.5}, "hidden"),
    ],
    ids=str,
)
def test_sizes_must_be_possible(sizes, says):
    with pytest.raises(InputError, match=says):
        CompactConfig(**({"channels": 4, "prediction": "v", "text_width": 8} | sizes))


def test_more_width_depth_and_tokens_cost_more():
    c, given = asked(batch=1)
    base = flops_of(compact(), c, given)
    assert flops_of(compact(width=32), c, given) > 2 * base
    assert flops_of(compact(depth=2), c, given) > 1.5 * base
    large, more = asked(batch=1, shape=(4, 12, 12))
    assert flops_of(compact(), large, more) > 3 * base
    # What becomes of the level is one for the batch; the rest goes with its size.
    two, three, four = (flops_of(compact(), *asked(batch=n)) for n in (2, 3, 4))
    shared = sum(
        2 * layer.in_features * layer.out_features
        for name, layer in compact().named_modules()
        if isinstance(layer, nn.Linear) and ("level" in name or "modulate" in name)
    )
    assert four - three == three - two == two - base == base - shared


# --- the file -------------------------------------------------------------------------------------

HOST = Host("m", "0" * 64, "Net", {"block_out_channels": [8, 16]}, 4, "epsilon", 3.0, 1e6)


@pytest.fixture
def file(tmp_path):
    model = compact(patch=2, depth=2, hidden=3)
    model.host = HOST
    save_noise_model(model, tmp_path / "g.safetensors", card={"data": "made", "error": 0.5})
    return tmp_path / "g.safetensors"


def test_a_file_holds_all_of_it(file):
    again, own = load_noise_model(file), compact(patch=2, depth=2, hidden=3)
    assert again.state_dict().keys() == own.state_dict().keys()
    for name, tensor in own.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    c, given = asked()
    # Where tensors lie in memory decides which sums the processor makes first.
    torch.testing.assert_close(again(c, given), own(c, given), rtol=1e-6, atol=1e-6)
    assert again.host == HOST
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    header = read_header(file)
    assert header["card"] == {"data": "made", "error": 0.5}
    assert header["form"] == "compact"
    assert [path.name for path in file.parent.iterdir()] == [file.name], "nothing left beside it"


def with_header(file, **changes):
    """The file with another header."""
    from safetensors.torch import load_file

    header = read_header(file) | changes
    save_file(load_file(file), file, {FORMAT: json.dumps(header)})
    return file


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: f.unlink(), "No noise model file"),
        (lambda f: f.write_text("a text"), "is no safetensors file, or cut off"),
        (lambda f: f.write_bytes(b""), "is no safetensors file, or cut off"),
        (lambda f: f.write_bytes(f.read_bytes()[:500]), "is no safetensors file, or cut off"),
        (lambda f: f.write_bytes(f.read_bytes()[:-9]), "is no safetensors file, or cut off"),
        (lambda f: save_file({"a": torch.zeros(1)}, f), "no noise model of w2sdiff.*core2 convert"),
        (lambda f: save_file({"a": torch.zeros(1)}, f, {FORMAT: "{"}), "damaged"),
        (lambda f: save_file({"a": torch.zeros(1)}, f, {FORMAT: "[]"}), "damaged"),
        (lambda f: save_file({"a": torch.zeros(1)}, f, {FORMAT: "{}"}), "damaged.*version"),
        (lambda f: with_header(f, version=2), r"version 2, expected 1.*newer w2sdiff\?"),
        (lambda f: with_header(f, version="x"), "version 'x'"),
        (lambda f: with_header(f, form="liquid"), "unknown form 'liquid'"),
        (lambda f: with_header(f, config={}), "damaged"),
        (lambda f: with_header(f, config=3), "damaged"),
        (lambda f: with_header(f, config={"knots": 3, "wide": 1}), "damaged"),
        (lambda f: with_header(f, config=compact(width=32).to_config()), "damaged.*|size mismatch"),
        (lambda f: with_header(f, config=compact(width=32).to_config() | {"width": 9}), "width"),
        (lambda f: with_header(f, config=compact().to_config() | {"knots": "x"}), "damaged"),
        (lambda f: with_header(f, host={"planet": 1}), "damaged.*planet"),
        (lambda f: with_header(f, host=None), "damaged"),
    ],
)
def test_a_bad_file_is_one_clear_line(file, spoil, says):
    spoil(file)
    with pytest.raises(InputError, match=says) as error:
        load_noise_model(file)
    assert "\n" not in str(error.value)
    assert file.name in str(error.value) or "width" in says


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match=r"written as \.safetensors"):
        save_noise_model(compact(), tmp_path / "g.pth")
    with pytest.raises(InputError, match="no file form"):
        save_noise_model(NoiseModel(), tmp_path / "g.safetensors")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        save_noise_model(compact(), tmp_path / "file" / "g.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_what_is_read_off_a_network_survives_json():
    for family in ("sd", "sdxl", "sd3", "flux", "pixart"):
        host = Host.of_network(tiny.denoiser(tiny.build(family), family))
        assert json.loads(json.dumps(host.architecture)) == host.architecture
        assert len(host.architecture) >= 4
    compiled = torch.compile(tiny.build_denoiser("sd"))
    assert Host.of_network(compiled) == Host.of_network(tiny.build_denoiser("sd"))

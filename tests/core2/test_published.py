"""The published noise model: its keys, its numbers, and what its host must give it."""

from __future__ import annotations

import copy
import itertools
import json
import math
import pickle
import zlib

import pytest
import torch
from safetensors.torch import load_file

from w2sdiff.core2 import published
from w2sdiff.core2.bank import lora_index
from w2sdiff.core2.last_prompt import LastPrompt
from w2sdiff.core2.noise_model import Given
from w2sdiff.core2.prompt_svd import PromptRows, decompose
from w2sdiff.core2.published import SD35, SDXL, PublishedConfig, PublishedNoiseModel
from w2sdiff.errors import InputError

HOSTS = {"sdxl": SDXL, "sd35": SD35}
SMALL = {
    "heads": 2,
    "head_dim": 8,
    "max_patches": 12,
    "sample_size": 16,
    "text_tokens": 5,
    "text_dim": 24,
    "bottleneck": 8,
    "svd_rows": 4,
    "lora_rank": 2,
}
TINY = {
    "sdxl": SDXL.replace(**SMALL, pooled_dim=7, loras=5),
    "sd35": SD35.replace(**SMALL, pooled_dim=12, loras=3),
}


@pytest.fixture(params=TINY)
def model(request):
    return trained(TINY[request.param])


def trained(config, **options):
    """A model whose parts all matter; as initialised, many are zero."""
    generator = torch.manual_seed(0)
    model = PublishedNoiseModel(config, **options)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return model.eval()


def asked(config, batch=1, size=(16, 16), seed=1, **changes):
    """A prediction, and what is given with it."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(batch, *shape, generator=generator)

    c, x = noise(config.channels, *size), noise(config.channels, *size)
    parts = {
        "text": noise(config.text_tokens, config.text_dim),
        "negative": noise(config.text_tokens, config.text_dim),
        "pooled": noise(config.pooled_dim),
        "negative_pooled": noise(config.pooled_dim),
        "step": 1,
        "num_steps": config.loras,
    }
    return c, Given(x, 0.8, 0.6, **{**parts, **changes})


def sample(given, i):
    """One sample of a batch."""
    parts = ("text", "negative", "pooled", "negative_pooled")
    one = {name: getattr(given, name)[i : i + 1] for name in parts}
    return Given(given.x, 0.8, 0.6, **one, step=given.step, num_steps=given.num_steps)


@pytest.mark.parametrize("host", HOSTS)
def test_keys_and_shapes_are_the_published_checkpoints(golden, host):
    text = (golden / "core2_refine/official_state_dict_manifest.json").read_text(encoding="utf-8")
    manifest = json.loads(text)[host]
    expected = {
        key.replace(".lora.0.", f".lora.{i}."): shape
        for key, shape in manifest["keys"].items()
        for i in range(manifest["loras"] if ".lora.0." in key else 1)
    }
    with torch.device("meta"):
        state = PublishedNoiseModel(HOSTS[host]).state_dict()
    assert {key: list(tensor.shape) for key, tensor in state.items()} == expected
    assert len(state) == manifest["n"]
    assert sum(tensor.numel() for tensor in state.values()) == manifest["params"]


@pytest.mark.parametrize("host", HOSTS)
def test_a_build_without_memory_holds_none(host):
    with torch.device("meta"):
        model = PublishedNoiseModel(HOSTS[host])
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert "pos_embed.pos_embed" in dict(model.named_buffers())


def test_forward_gives_the_published_numbers(golden):
    folder = golden / "core2_refine"
    recorded = json.loads((folder / "sdxl_forward.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "sdxl_forward.safetensors")
    with torch.device("meta"):
        model = PublishedNoiseModel(SDXL.replace(loras=3, lora_rank=4))
    model.pos_embed = sized_patch_embed(model.config)
    weights = {name: fill(name, weight.shape) for name, weight in model.named_parameters()}
    model.load_state_dict(weights, assign=True, strict=False)  # all but the position embedding
    factors = (tensors[name][None] for name in ("svd_u", "svd_s", "svd_vh"))
    with torch.no_grad():
        found = model.eval().refine(
            tensors["prediction"],
            PromptRows.from_factors(*factors),
            tensors["pooled"][None],
            recorded["lora_index"],
        )
    assert (found - tensors["output"]).abs().max() < 1e-4
    assert tensors["output"].abs().max() > 0.1


def sized_patch_embed(config):
    from diffusers.models.embeddings import PatchEmbed

    return PatchEmbed(
        config.sample_size,
        config.sample_size,
        config.patch,
        config.channels,
        config.width,
        pos_embed_max_size=config.max_patches,
    )


def fill(name, shape):
    """The recording's rule: 0.02 sin(0.37 j + phase) over the flat index j, in float64.

    By row and column, sin(r + c) = sin r cos c + cos r sin c, or a hundred million sines take
    longer than all the rest.
    """
    phase = (zlib.crc32(name.encode()) % 1000) / 1000 * 6.283
    columns = math.prod(shape[1:])
    r = 0.37 * columns * torch.arange(shape[0], dtype=torch.float64)[:, None] + phase
    c = 0.37 * torch.arange(columns, dtype=torch.float64)
    return 0.02 * (r.sin() * c.cos()).addcmul_(r.cos(), c.sin()).float().reshape(shape)


@pytest.mark.parametrize("host", TINY)
def test_the_prompt_is_decomposed_as_published(host):
    config = TINY[host]
    model = trained(config)
    c, given = asked(config)
    halves = [(given.negative, given.negative_pooled), (given.text, given.pooled)]
    if host == "sd35":  # the two published pipelines stack in opposite orders
        halves.reverse()
    u, s, vh = torch.linalg.svd(torch.cat([half[0][0] for half in halves]))
    u, s, vh = u[: config.svd_rows], s[: config.svd_rows], vh[: config.svd_rows]
    rows = u.T @ torch.diag(s) @ vh
    centre = torch.cat([u, s[:, None], vh], dim=1).mean(0)
    pooled = torch.cat([half[1][0] for half in halves])
    expected = model.refine(c, PromptRows(rows[None], centre[None]), pooled[None], 1)
    torch.testing.assert_close(model(c, given), expected, rtol=1e-5, atol=1e-5)


def test_a_long_prompt_is_decomposed_as_published():
    """More tokens than dimensions: the rows of a square U, not of the reduced one."""
    stacked = torch.randn(1, 9, 6, generator=torch.Generator().manual_seed(0))
    u, s, vh = (part[:4] for part in torch.linalg.svd(stacked[0]))
    found = decompose(stacked, 4)
    torch.testing.assert_close(found.rows[0], u.T @ torch.diag(s) @ vh)
    torch.testing.assert_close(found.centre[0], torch.cat([u, s[:, None], vh], dim=1).mean(0))


@pytest.mark.parametrize("zeros", [False, True])
def test_a_batch_of_two_prompts_is_two_runs(model, zeros):
    """Also where the decomposition is not unique: without a negative prompt SDXL gives zeros."""
    c, given = asked(model.config, batch=2)
    if zeros:
        given.negative.zero_()
    both = model(c, given)
    for i in range(2):
        alone = model(c[i : i + 1], sample(given, i))
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-5, atol=1e-5)
    assert (both[0] - both[1]).abs().max() > 0.1


def test_every_part_that_is_given_matters_and_no_other(model):
    c, given = asked(model.config)
    out = model(c, given)
    for name in ("text", "negative", "pooled", "negative_pooled"):
        changed = Given(**{**vars(given), name: getattr(given, name).flip(-1)})
        assert (model(c, changed) - out).abs().max() > 1e-3, name
    unread = {"x": given.x + 1, "alpha": 0.1, "sigma": 0.9, "mask": torch.zeros(1, 5)}
    assert torch.equal(model(c, Given(**{**vars(given), **unread})), out)


def test_each_step_has_its_own_weights(model):
    c, given = asked(model.config)
    outs = [model(c, Given(**{**vars(given), "step": step})) for step in range(model.config.loras)]
    assert all((a - b).abs().max() > 1e-3 for a, b in itertools.pairwise(outs))
    silent = copy.deepcopy(model)
    silent.bank.alpha = 0.0
    again = [
        silent(c, Given(**{**vars(given), "step": step})) for step in range(model.config.loras)
    ]
    assert all(torch.equal(again[0], other) for other in again)
    assert model.bank.alpha == 1.0  # a copy has a bank of its own


@pytest.mark.parametrize("sets", [28, 50])
def test_a_run_as_long_as_the_trained_one_uses_every_set_once(sets):
    assert [lora_index(i, sets, sets) for i in range(sets)] == list(range(sets))


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 27, 29, 49, 51, 100, 1000])
@pytest.mark.parametrize("sets", [28, 50])
@pytest.mark.parametrize("reference", [False, True])
def test_other_step_counts_run_through_the_sets(steps, sets, reference):
    indices = [lora_index(i, steps, sets, reference=reference) for i in range(steps)]
    assert indices == sorted(indices)
    assert indices[0] == 0
    assert indices[-1] < sets
    for i, index in enumerate(indices):
        distance = abs(index - i * sets / steps)
        # Beyond the last set there is none; a half more is as near as the nearest may be.
        assert distance < (1 + 1e-9 if reference else 0.5 + 1e-9) or index == sets - 1


def test_the_published_rule_rounds_in_floating_point():
    for sets in (28, 50):
        for steps in range(1, 101):
            published = [
                min(max(0, math.floor(sets - (steps - i) / steps * sets)), sets - 1)
                for i in range(steps)
            ]
            found = [lora_index(i, steps, sets, reference=True) for i in range(steps)]
            assert found == published
    assert [i for i in range(50) if lora_index(i, 50, 50, reference=True) != i] == [22]
    assert [i for i in range(28) if lora_index(i, 28, 28, reference=True) != i] == []


def test_reference_is_an_option_of_the_model():
    config = TINY["sdxl"]
    c, given = asked(config, step=1, num_steps=3)  # 1.67 of 5: nearest 2, down 1
    for reference, index in ((False, 2), (True, 1)):
        model = trained(config, reference=reference)
        model(c, given)
        assert model.bank.index == index


@pytest.mark.parametrize(("step", "steps"), [(-1, 5), (5, 5), (0, 0)])
def test_a_step_outside_of_the_run_is_refused(step, steps):
    with pytest.raises(InputError, match=f"step {step} is not one of a run of {steps}"):
        lora_index(step, steps, 50)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_the_same(model, dtype):
    """Weights, prompt and prediction rounded alike: what differs is the arithmetic."""
    c, given = asked(model.config)
    parts = ("x", "text", "negative", "pooled", "negative_pooled")
    half = {name: getattr(given, name).to(dtype) for name in parts}
    single = {name: tensor.float() for name, tensor in half.items()}
    with torch.no_grad():
        model.to(dtype)
        found = model(c.to(dtype), Given(**{**vars(given), **half}))
        mixed = model(c.to(dtype).float(), Given(**{**vars(given), **single}))
        exact = model.float()(c.to(dtype).float(), Given(**{**vars(given), **single}))
    assert found.dtype == dtype
    assert mixed.dtype == torch.float32  # the host's type, whatever the model's
    assert torch.equal(found.float(), mixed)
    # Some dozen roundings in a row, each of at most half an eps of a value of the output's size.
    assert (mixed - exact).abs().max() < 12 * torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("size", [(8, 24), (24, 8), (2, 2), (20, 16)])
def test_pictures_need_not_be_square(model, size):
    c, given = asked(model.config, size=size)
    out = model(c, given)
    assert out.shape == c.shape
    turned = model(c.mT, given)  # the position embedding tells rows from columns
    assert size == (2, 2) or (turned.mT - out).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((15, 16), "height 15 of the latents is not divisible by the patch size 2; use 14 or 16"),
        ((16, 17), "width 17 of the latents is not divisible by the patch size 2; use 16 or 18"),
        ((26, 16), "height 26 .* expected at most 24"),
        ((16, 26), "width 26 .* expected at most 24"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(model, size, message):
    with pytest.raises(InputError, match=message):
        model(*asked(model.config, size=size))


def test_another_host_is_refused(model):
    c, given = asked(model.config)
    with pytest.raises(InputError, match="another host"):
        model(torch.cat([c, c], dim=1), given)
    with pytest.raises(InputError, match="another host"):
        model(c[0], given)


@pytest.mark.parametrize("name", ["negative", "pooled", "negative_pooled"])
def test_a_missing_part_of_the_prompt_is_named(model, name):
    with pytest.raises(InputError, match=f"needs `{name}` of the prompt"):
        model(*asked(model.config, **{name: None}))


@pytest.mark.parametrize("name", ["text", "negative", "pooled", "negative_pooled"])
def test_a_misshapen_part_of_the_prompt_is_named(model, name):
    c, given = asked(model.config)
    with pytest.raises(InputError, match=f"`{name}` of the prompt has shape .*expected"):
        model(c, Given(**{**vars(given), name: getattr(given, name)[..., 1:]}))
    with pytest.raises(InputError, match=f"`{name}` of the prompt has shape .*expected"):
        model(c, Given(**{**vars(given), name: getattr(given, name).repeat(2, *[1] * 2)}))


def test_long_t5_prompts_are_told_the_way_out():
    config = TINY["sd35"].replace(text_tokens=333)
    with pytest.raises(InputError, match=r"333 tokens .*max_sequence_length=256"):
        trained(config)(*asked(config, text=torch.zeros(1, 589, 24)))


def test_embeddings_that_are_not_finite_are_refused(model):
    c, given = asked(model.config)
    given.text[0, 2, 3] = math.inf
    with pytest.raises(InputError, match="not finite in 1 places"):
        model(c, given)


@pytest.fixture
def decompositions(monkeypatch):
    """The prompts that were decomposed."""
    seen = []

    def counting(stacked, count):
        seen.append(stacked)
        return decompose(stacked, count)

    monkeypatch.setattr(published, "decompose", counting)
    return seen


def test_a_run_decomposes_its_prompt_once(model, decompositions):
    c, given = asked(model.config)
    halves = torch.cat([given.negative, given.text])
    for step in range(model.config.loras):
        # New views of one memory, as a pipeline's loop makes them.
        negative, text = halves.chunk(2)
        model(c, Given(**{**vars(given), "text": text, "negative": negative, "step": step}))
    assert len(decompositions) == 1
    model(c, Given(**{**vars(given), "text": given.text.clone()}))  # a copy is the same prompt
    assert len(decompositions) == 1


def test_another_prompt_is_decomposed_anew(model, decompositions):
    c, given = asked(model.config)
    first = model(c, given)
    other = model(c, asked(model.config, seed=2)[1])
    assert len(decompositions) == 2
    given.text.mul_(2)  # in place: the same tensor, another prompt
    written = model(c, given)
    assert len(decompositions) == 3
    assert not torch.equal(first, other)
    assert not torch.equal(first, written)
    swapped = Given(**{**vars(given), "text": given.negative, "negative": given.text})
    model(c, swapped)
    assert len(decompositions) == 4


def test_in_inference_mode_too(model, decompositions):
    """There, tensors do not count what is written to them."""
    with torch.inference_mode():
        c, given = asked(model.config)
        for _ in range(3):
            first = model(c, given)
        assert len(decompositions) == 1
        given.text.mul_(2)
        assert not torch.equal(model(c, given), first)
    assert len(decompositions) == 2


def test_the_memory_holds_one_prompt_and_stays_behind(model):
    c, given = asked(model.config)
    out = model(c, given)
    assert not [key for key in model.state_dict() if "prompt" in key and "linear" not in key]
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin._last_prompt._seen is None
        assert torch.equal(twin(c, given), out)
    memory, made = LastPrompt(), []
    for _ in range(3):
        for i in range(2):
            tensor = torch.full((1, 2), float(i))
            memory.get([tensor], lambda t=tensor: made.append(t) or PromptRows(t, t))
    assert len(made) == 6


def test_equal_prompts_of_a_batch_are_decomposed_once(monkeypatch):
    calls, svd = [], torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda *a, **k: calls.append(a) or svd(*a, **k))
    one, other = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    found = decompose(torch.stack([one, other, one]), 3)
    assert len(calls) == 2
    assert torch.equal(found.rows[0], found.rows[2])
    assert not torch.equal(found.rows[0], found.rows[1])


def test_it_can_be_trained_further(model):
    model.train()
    c, given = asked(model.config)
    for _ in range(2):  # the second pass goes through the remembered prompt
        model(c, given).square().mean().backward()
    still = {name for name, weight in model.named_parameters() if weight.grad is None}
    unread = () if model.config.layers > 4 else ("pre24_linear",)
    assert all(".lora." in name or name.startswith(unread) for name in still)
    assert {name.split(".lora.")[1][0] for name in still if ".lora." in name} >= {"0", "2"}
    assert model.proj_out.lora[1].B.grad.abs().max() > 0


def test_before_training_it_is_as_published():
    """Prompt-dependent parts and low-rank sets start at zero, so that only the network acts."""
    model = PublishedNoiseModel(TINY["sdxl"])
    assert torch.equal(model.skip_connection.linear.weight, torch.zeros(8, 11))
    assert not model.trans_linear.linear.weight.any()
    assert not model.pre8_linear2[-1].linear.weight.any()
    assert model.last_linear[-1].linear.weight.any()
    assert not any(weight.any() for name, weight in model.named_parameters() if name[-2:] == ".B")


@pytest.mark.parametrize("config", [*HOSTS.values(), *TINY.values()])
def test_configurations_go_through_json(config):
    assert PublishedConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 9}, "layers is at most 8"),
        ({"layers": 0}, "layers is a positive whole number, got 0"),
        ({"heads": 2.0}, r"heads is a positive whole number, got 2\.0"),
        ({"loras": True}, "loras is a positive whole number"),
        ({"heads": 1, "head_dim": 6}, "multiple of 4"),
        ({"pool_projection": False}, "expected pooled_dim 1024, got 1280"),
        ({"pool_projection": 1}, "true or false"),
        ({"lora_alpha": "1"}, "lora_alpha is a number"),
    ],
)
def test_wrong_sizes_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        SDXL.replace(**changes)


@pytest.mark.parametrize("data", [{"layer": 4}, [4], None])
def test_other_json_is_refused(data):
    with pytest.raises(InputError, match="expected the configuration of a published noise model"):
        PublishedConfig.from_json(data)

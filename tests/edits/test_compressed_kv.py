"""`CompressedKV`: the same network, compressed, as a role of W2SD and AutoGuidance."""

from __future__ import annotations

import json
import time

import pytest
import tiny
import torch

from w2sdiff import (
    W2SD,
    AutoGuidance,
    Checkpoint,
    CompressedKV,
    Guidance,
    InputError,
    Plain,
    UnsupportedError,
    attach,
)
from w2sdiff.attention import KVCompression, Schedule, compress, restore, save_adapter
from w2sdiff.edits import Edits, parse_edits

FAMILIES = ("pixart", "sd3", "flux", "flux-true-cfg")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param, tiny.build(request.param)


def compressed(pipe, name, compression, **changes):
    """Latents of the whole run with a compressed network."""
    compress(pipe.transformer, compression)
    try:
        return tiny.latents(pipe, name, **changes)
    finally:
        restore(pipe.transformer)


def inventory(module):
    return {
        path: (type(part), sorted(part.__dict__), list(part._modules), id(processor(part)))
        for path, part in module.named_modules()
    }


def processor(part):
    return getattr(part, "processor", None)


def test_a_role_is_the_compressed_network(family):
    """Plain sampling as that role is plain sampling of a compressed pipeline."""
    name, pipe = family
    edit = CompressedKV(ratio=2)
    expected = compressed(pipe, name, edit.compression)
    with attach(pipe, Plain(base=edit)):
        ours = tiny.latents(pipe, name)
    assert torch.equal(ours, expected)
    assert not torch.equal(ours, tiny.latents(pipe, name))


def test_weak_at_scale_zero_is_the_compressed_network(family):
    name, pipe = family
    edit = CompressedKV(ratio=(2, 1), layers="deep")
    expected = compressed(pipe, name, edit.compression)
    with attach(pipe, AutoGuidance(weak=edit, scale=0.0)):
        ours = tiny.latents(pipe, name)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "method",
    [
        W2SD(weak=CompressedKV(ratio=2)),
        W2SD(weak=CompressedKV(ratio=4, layers="all"), strong=CompressedKV(ratio=2)),
        W2SD(weak=CompressedKV("conv", ratio=2, layers="deep")),
        AutoGuidance(weak=CompressedKV(ratio=4, layers="all"), scale=1.5),
        W2SD(weak=CompressedKV("uniform", {0.5: 2}) | Guidance(1.0), strong=Guidance(1.0)),
    ],
    ids=lambda method: repr(method)[:60],
)
def test_methods_run_and_leave_nothing_behind(family, method):
    name, pipe = family
    if "Guidance(scale" in repr(method) and name == "flux":
        pytest.skip("no guidance scale to change, but an embedded one: the same in both roles")
    plain, before = tiny.latents(pipe, name, height=24), inventory(pipe.transformer)
    keys = list(pipe.transformer.state_dict())
    with attach(pipe, method) as run:
        ours = tiny.latents(pipe, name, height=24)
        again = tiny.latents(pipe, name, height=24)
    assert run.stats.calls > 4
    assert ours.isfinite().all()
    assert torch.equal(ours, again)
    assert not torch.equal(ours, plain)
    assert inventory(pipe.transformer) == before
    assert list(pipe.transformer.state_dict()) == keys
    assert torch.equal(tiny.latents(pipe, name, height=24), plain)


def test_ratio_one_is_plain_sampling(family):
    name, pipe = family
    plain = tiny.latents(pipe, name)
    for edit in (CompressedKV(ratio=1), CompressedKV(layers=[])):
        with attach(pipe, Plain(base=edit)):
            assert torch.equal(tiny.latents(pipe, name), plain)


def test_restored_after_an_exception_in_the_compressed_network(family):
    name, pipe = family
    plain, before = tiny.latents(pipe, name), inventory(pipe.transformer)
    layer = next(part for part in pipe.transformer.modules() if hasattr(part, "to_k"))
    stock = layer.processor
    with attach(pipe, W2SD(weak=CompressedKV(ratio=2))):

        def explode(*args):
            if layer.processor is not stock:
                raise RuntimeError("in the weak role")

        handle = layer.register_forward_hook(explode)
        with pytest.raises(RuntimeError, match="in the weak role"):
            tiny.latents(pipe, name)
        handle.remove()
        assert layer.processor is stock
        assert not hasattr(layer, "kv")
    assert inventory(pipe.transformer) == before
    assert torch.equal(tiny.latents(pipe, name), plain)


def test_built_once_and_switched_in_no_time(monkeypatch):
    from w2sdiff.attention import patch

    pipe = tiny.build("pixart")
    built = []
    init = patch.Patch.__init__

    def count(self, *args):
        built.append(args)
        init(self, *args)

    monkeypatch.setattr(patch.Patch, "__init__", count)
    with attach(pipe, W2SD(weak=CompressedKV(ratio=2))) as run:
        tiny.latents(pipe, "pixart")
        tiny.latents(pipe, "pixart")
        assert len(built) == 1
        edit = CompressedKV(ratio=2)
        edit.enter(run.context)()
        started = time.perf_counter()
        for _ in range(100):
            edit.enter(run.context)()
        assert (time.perf_counter() - started) / 100 < 1e-3


def test_together_with_another_checkpoint():
    """The role's own network is the one that is compressed."""
    pipe, other = tiny.build("pixart"), tiny.build_denoiser("pixart")
    stock, called = inventory(other), pipe.transformer
    with attach(pipe, Plain(base=Checkpoint(other) | CompressedKV(ratio=2))):
        ours = tiny.latents(pipe, "pixart")
    assert inventory(other) == stock
    assert pipe.transformer is called
    pipe.transformer = other
    assert torch.equal(ours, compressed(pipe, "pixart", CompressedKV(ratio=2).compression))


def test_a_compiled_pipeline():
    torch._dynamo.reset()
    pipe = tiny.build("pixart")
    method = W2SD(weak=CompressedKV(ratio=2))
    with attach(pipe, method):
        expected = tiny.latents(pipe, "pixart")
    pipe.transformer = torch.compile(pipe.transformer, backend="eager", fullgraph=True)
    with attach(pipe, method):
        ours = tiny.latents(pipe, "pixart")
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


def test_a_trained_adapter_is_used_and_its_hash_recorded(tmp_path):
    pipe = tiny.build("pixart")
    compress(pipe.transformer, KVCompression("conv", 2, "all"))
    for block in pipe.transformer.transformer_blocks:
        block.attn1.kv.norm.weight.data.mul_(0.3)
    file = save_adapter(pipe.transformer, tmp_path)
    expected = tiny.latents(pipe, "pixart")
    restore(pipe.transformer)
    edit = CompressedKV("conv", 2, "all", adapter=tmp_path)
    with attach(pipe, Plain(base=edit)):
        assert torch.equal(tiny.latents(pipe, "pixart"), expected)

    data = json.loads(json.dumps(edit.to_json()))
    again = CompressedKV.from_json(data)
    assert len(again.sha256) == 64
    assert again.to_json() == data
    with attach(pipe, Plain(base=again)):
        assert torch.equal(tiny.latents(pipe, "pixart"), expected)
    changed = CompressedKV("conv", 2, "all", adapter=file, sha256="0" * 64)
    with attach(pipe, Plain(base=changed)), pytest.raises(InputError, match="not the one expected"):
        tiny.latents(pipe, "pixart")
    other = CompressedKV("conv", 4, adapter=file)
    with attach(pipe, Plain(base=other)), pytest.raises(UnsupportedError, match="another compr"):
        tiny.latents(pipe, "pixart")


@pytest.mark.parametrize("family_", ["sd", "sdxl"])
def test_a_unet_is_refused_by_name_and_unharmed(family_):
    pipe = tiny.build(family_)
    plain = tiny.latents(pipe, family_)
    method = W2SD(weak=CompressedKV(ratio=2))
    with attach(pipe, method), pytest.raises(UnsupportedError, match="UNet2DConditionModel"):
        tiny.latents(pipe, family_)
    assert torch.equal(tiny.latents(pipe, family_), plain)


def test_a_pipeline_that_is_compressed_already_is_refused():
    pipe = tiny.build("pixart")
    compress(pipe.transformer, KVCompression("average", 2, "all"))
    method = W2SD(weak=CompressedKV(ratio=2))
    with attach(pipe, method), pytest.raises(InputError, match="compressed already"):
        tiny.latents(pipe, "pixart")


def test_too_large_a_ratio_is_said_at_the_call():
    pipe = tiny.build("pixart")
    plain = tiny.latents(pipe, "pixart")
    method = W2SD(weak=CompressedKV(ratio=64))
    with attach(pipe, method), pytest.raises(InputError, match="larger than the grid"):
        tiny.latents(pipe, "pixart")
    assert torch.equal(tiny.latents(pipe, "pixart"), plain)


# ---- the value


@pytest.mark.parametrize(
    "edit",
    [
        CompressedKV(),
        CompressedKV("conv", (2, 1), "deep"),
        CompressedKV("uniform_every", 4, range(2, 5)),
        CompressedKV("average", Schedule({0.5: (1, 2), 0.8: 4}), [0]),
        CompressedKV("conv", 2, range(4), per_layer={1: 4, 3: (1, 2)}),
        CompressedKV(per_layer={0: Schedule({0.5: 2}), 2: 1}),
    ],
)
def test_json_round_trip(edit):
    again = Edits.from_json(json.loads(json.dumps(Edits((edit,)).to_json())))
    assert again == Edits((edit,))
    assert hash(again) == hash(Edits((edit,)))


@pytest.mark.parametrize(
    ("text", "edit"),
    [
        ("compressed-kv=2", CompressedKV(ratio=2)),
        ("compressed-kv=2x1", CompressedKV(ratio=(2, 1))),
        ("compressed-kv:conv=2", CompressedKV("conv")),
        ("compressed-kv:deep=4", CompressedKV(ratio=4, layers="deep")),
        ("compressed-kv:uniform:14-27=2", CompressedKV("uniform", 2, range(14, 28))),
        ("compressed-kv:average:0+3-4=2", CompressedKV("average", 2, (0, 3, 4))),
        ("compressed-kv:0-2+3/4=2", CompressedKV(layers=range(4), per_layer={3: 4})),
        ("compressed-kv=0.6/2+0.8/4", CompressedKV(ratio=Schedule({0.6: 2, 0.8: 4}))),
    ],
)
def test_text(text, edit):
    assert parse_edits(text) == Edits((edit,))


def test_layers_of_their_own_ratio_are_compressed_so():
    pipe = tiny.build("pixart")
    edit = CompressedKV(ratio=2, per_layer={1: (1, 4)})
    with attach(pipe, Plain(base=edit)):
        ours = tiny.latents(pipe, "pixart")
    expected = KVCompression("average", 2, "all", {1: (1, 4)})
    assert torch.equal(ours, compressed(pipe, "pixart", expected))
    assert not torch.equal(ours, compressed(pipe, "pixart", KVCompression("average", 2, "all")))


def test_an_adapter_with_ratios_by_layer_says_them(tmp_path):
    pipe = tiny.build("pixart")
    compression = KVCompression("conv", 2, "all", {1: (1, 2)})
    compress(pipe.transformer, compression)
    expected = tiny.latents(pipe, "pixart")
    file = save_adapter(pipe.transformer, tmp_path)
    restore(pipe.transformer)
    (edit,) = parse_edits(f"compressed-kv=2@{file}").items
    assert edit.compression == compression
    with attach(pipe, Plain(base=CompressedKV.from_json(edit.to_json()))):
        assert torch.equal(tiny.latents(pipe, "pixart"), expected)


def test_text_with_an_adapter(tmp_path):
    pipe = tiny.build("pixart")
    compress(pipe.transformer, KVCompression("conv", 2, "deep"))
    file = save_adapter(pipe.transformer, tmp_path / "kv.safetensors")
    (edit,) = parse_edits(f"compressed-kv:conv:deep=2@{file},guidance=1").items[:1]
    assert edit == CompressedKV("conv", 2, "deep", adapter=file)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("compressed-kv=0", "1 or more"),
        ("compressed-kv=-2", "1 or more"),
        ("compressed-kv=much", "whole numbers"),
        ("compressed-kv=", "whole numbers"),
        ("compressed-kv=2x2x2", "two of them"),
        ("compressed-kv", "compressed-kv=R"),
        ("compressed-kv:konv:deep=2", "'conv'"),
        ("compressed-kv:deeep=2", "'deep'"),
        ("compressed-kv:20-10=2", "write 10-20"),
        ("compressed-kv=0.5/2+4", "LEVEL/R"),
        ("compressed-kv:conv:deep:x=2", "means nothing"),
        ("compressed-kv:conv=2@missing.safetensors", "No adapter"),
        ("compressed-kv=2@", "an adapter's file after the @, got '2@'"),
        ("compressed-kv:conv:=2", "such as conv:14-27; got 'conv:', where one is empty"),
        ("compressed-kv::deep=2", "got ':deep', where one is empty"),
        ("compressed-kv:=2", "where one is empty"),
        ("compressed-kv=2x", "whole numbers"),
        ("compressed-kv=0.6/2+", "LEVEL/R"),
        ("compressed-kv:0-2+3/=2", "whole numbers"),
        ("compressed-kv:0-2+=2", "layer set"),
    ],
)
def test_text_errors_are_one_line_that_helps(text, says):
    with pytest.raises(InputError) as error:
        parse_edits(text)
    assert says in str(error.value)
    assert "\n" not in str(error.value)

"""`compress` and `restore` among everything else that touches a transformer."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from tiny_hosts import HOSTS, arguments, attentions, build_host, run
from torch import nn

from w2sdiff import InputError, UnsupportedError
from w2sdiff.attention import (
    KINDS,
    KVCompression,
    Patch,
    Schedule,
    adapter_compression,
    compress,
    load_adapter,
    restore,
    save_adapter,
)
from w2sdiff.attention.hosts import Processor

HALVED = KVCompression("average", 2, "all")
BACKENDS = ("native", "_native_math", "_native_flash")


@pytest.fixture(scope="module", params=HOSTS)
def host(request):
    return request.param, build_host(request.param)


@pytest.fixture
def pixart():
    return build_host("pixart")


# ---- what is refused


def unet():
    from diffusers import UNet2DModel

    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    return UNet2DModel(sample_size=8, block_out_channels=[4], norm_num_groups=2, **blocks)


def sana():
    from diffusers import SanaTransformer2DModel

    return SanaTransformer2DModel(
        num_layers=1,
        num_attention_heads=1,
        attention_head_dim=8,
        num_cross_attention_heads=1,
        cross_attention_head_dim=8,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=4,
    )


def test_compressing_twice_is_refused(pixart):
    compress(pixart, HALVED)
    before = run(pixart, "pixart")
    with pytest.raises(InputError, match="compressed already"):
        compress(pixart, KVCompression("uniform", 2))
    assert torch.equal(run(pixart, "pixart"), before)
    restore(pixart)
    with pytest.raises(InputError, match="not compressed"):
        restore(pixart)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (sana, UnsupportedError, "SanaTransformer2DModel has linear attention"),
        (unet, UnsupportedError, "UNet2DModel is not a transformer.*PixArtTransformer2DModel"),
        (lambda: nn.Linear(1, 1), UnsupportedError, "Linear is not a transformer"),
        (lambda: "transformer", InputError, "got str"),
        (lambda: None, InputError, "got NoneType"),
    ],
)
def test_other_networks_are_refused_by_name(make, error, says):
    with pytest.raises(error, match=says):
        compress(make(), HALVED)


def test_a_layer_that_is_not_there_is_refused_and_nothing_is_changed(host):
    name, model = host
    count = len(attentions(model, name))
    with pytest.raises(InputError, match=f"no layer {count}"):
        compress(model, KVCompression("average", 2, [0, count]))
    compress(model, HALVED)
    restore(model)


def test_something_else_than_a_compression_is_refused(pixart):
    with pytest.raises(InputError, match="KVCompression"):
        compress(pixart, 2)


def test_processors_that_do_something_else_are_refused_by_name(pixart):
    class MyProcessor:
        __call__ = staticmethod(lambda *args, **_: args[1])

    layer = pixart.transformer_blocks[1].attn1
    layer.set_processor(MyProcessor())
    with pytest.raises(UnsupportedError, match=r"MyProcessor at transformer_blocks\.1\.attn1"):
        compress(pixart, HALVED)


# ---- processors that are set while the patch is on


class Whole:
    """A processor of somebody else: no attention, the values as they are."""

    def __call__(self, attn, hidden_states, *_args, **_kwargs):
        return attn.to_out[0](attn.to_v(hidden_states))


@pytest.mark.parametrize("name", ["pixart", "hunyuan", "sd3", "flux", "wan", "cogvideox"])
def test_projections_that_are_fused_afterwards_stay_compressed_and_fused(name):
    model = build_host(name)
    expected = run(compress(model, HALVED), name)
    restore(model)
    plain = run(model, name)
    compress(model, HALVED)
    model.fuse_qkv_projections()
    torch.testing.assert_close(run(model, name), expected, rtol=1e-4, atol=1e-4)
    restore(model)
    layers = [layer for block in attentions(model, name) for layer in block]
    assert all(layer.fused_projections for layer in layers)
    assert not any(isinstance(layer.processor, Processor) for layer in layers)
    torch.testing.assert_close(run(model, name), plain, rtol=1e-4, atol=1e-4)
    assert (plain - expected).abs().max() > 1e-2


def test_projections_that_were_fused_in_between_can_be_unfused(pixart):
    """`unfuse_qkv_projections` puts back the processors that it found: ours."""
    stock = pixart.attn_processors
    plain = run(pixart, "pixart")
    expected = run(compress(pixart, HALVED), "pixart")
    pixart.fuse_qkv_projections()
    run(pixart, "pixart")
    pixart.unfuse_qkv_projections()
    torch.testing.assert_close(run(pixart, "pixart"), expected, rtol=1e-4, atol=1e-4)
    restore(pixart)
    assert pixart.attn_processors == stock
    # And where the patch is gone by then.
    compress(pixart, HALVED)
    pixart.fuse_qkv_projections()
    restore(pixart)
    pixart.unfuse_qkv_projections()
    torch.testing.assert_close(run(pixart, "pixart"), plain, rtol=1e-4, atol=1e-4)
    again = run(compress(pixart, HALVED), "pixart")
    torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-4)
    restore(pixart)
    assert pixart.attn_processors == stock


def test_a_stock_processor_set_afterwards_is_compressed_and_stays_after_restoring(pixart):
    from diffusers.models.attention_processor import AttnProcessor

    expected = run(compress(pixart, HALVED), "pixart")
    own = AttnProcessor()
    pixart.set_attn_processor(own)
    torch.testing.assert_close(run(pixart, "pixart"), expected, rtol=1e-4, atol=1e-4)
    restore(pixart)
    assert all(processor is own for processor in pixart.attn_processors.values())


@pytest.mark.parametrize("called", [False, True], ids=["at once", "after a call"])
def test_another_processor_set_afterwards_is_said_and_stays_after_restoring(host, called):
    name, model = host
    stock = model.attn_processors if hasattr(model, "attn_processors") else None
    layer, own = attentions(model, name)[0][0], Whole()
    plain, before = run(model, name), layer.processor
    compress(model, HALVED)
    if called:
        run(model, name)
    layer.set_processor(own)
    with pytest.raises(UnsupportedError, match=r"Whole was set at .* after .* was compressed"):
        run(model, name)
    restore(model)
    assert layer.processor is own
    layer.set_processor(before)
    assert torch.equal(run(model, name), plain)
    assert stock is None or model.attn_processors == stock


def test_processors_that_are_made_anew_by_their_class_are_refused():
    """What `load_ip_adapter` of FLUX does with those of the layers that it leaves alone."""
    model = build_host("flux")
    plain = run(model, "flux")
    compress(model, HALVED)
    with pytest.raises(UnsupportedError, match=r"IP-Adapter .* restore\(denoiser\) first"):
        model.set_attn_processor({name: type(p)() for name, p in model.attn_processors.items()})
    restore(model)
    model.set_attn_processor({name: type(p)() for name, p in model.attn_processors.items()})
    assert torch.equal(run(model, "flux"), plain)


def test_a_patch_that_was_built_before_takes_the_processors_of_now(pixart):
    """As an edit does, which builds its patch once and switches it on for every evaluation."""
    patch = Patch(pixart, HALVED)
    patch.enable()
    expected = run(pixart, "pixart")
    patch.disable()
    pixart.fuse_qkv_projections()
    fused = pixart.attn_processors
    patch.enable()
    torch.testing.assert_close(run(pixart, "pixart"), expected, rtol=1e-4, atol=1e-4)
    patch.disable()
    assert pixart.attn_processors == fused
    pixart.transformer_blocks[0].attn1.set_processor(Whole())
    with pytest.raises(UnsupportedError, match=r"Whole at transformer_blocks\.0\.attn1 is not one"):
        patch.enable()
    assert "_w2sdiff_kv" not in pixart.__dict__


def test_context_parallelism_is_refused():
    model = compress(build_host("flux"), HALVED)
    processor = model.transformer_blocks[0].attn.processor
    with pytest.raises(UnsupportedError, match="parallel"):
        processor._parallel_config = object()
    processor.stock._parallel_config = object()
    with pytest.raises(UnsupportedError, match="parallel"):
        run(model, "flux")


# ---- attention backends


@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_of_the_dispatcher_agree(host, backend):
    name, model = host
    compress(model, HALVED)
    expected = run(model, name)
    model.set_attention_backend(backend)
    used = []
    stock = F.scaled_dot_product_attention

    def record(*args, **kwargs):
        if args:  # attention to text, which is not the dispatcher's
            return stock(*args, **kwargs)
        used.append(kwargs["key"].shape)
        return stock(*args, **kwargs)

    try:
        F.scaled_dot_product_attention = record
        torch.testing.assert_close(run(model, name), expected, rtol=1e-4, atol=1e-4)
    finally:
        F.scaled_dot_product_attention = stock
        model.reset_attention_backend()
        restore(model)
    assert used


def test_a_backend_that_is_chosen_reaches_the_kernel_and_stays_after_restoring():
    from diffusers.models.attention_dispatch import AttentionBackendName

    model = compress(build_host("flux"), HALVED)
    model.set_attention_backend("_native_math")
    assert model.transformer_blocks[0].attn.processor._attention_backend == "_native_math"
    restore(model)
    own = model.transformer_blocks[0].attn.processor
    assert own._attention_backend == AttentionBackendName("_native_math")


@pytest.mark.parametrize("name", ["pixart", "flux"])
def test_a_backend_that_cannot_is_refused_by_name(name):
    from diffusers.models.attention_dispatch import AttentionBackendName

    model = compress(build_host(name), HALVED)
    layer = attentions(model, name)[0][0]
    with pytest.raises(UnsupportedError, match="'_native_xla'"):
        layer.processor._attention_backend = AttentionBackendName("_native_xla")
    restore(model)
    if name == "flux":  # chosen before, so on the stock processor
        layer.processor._attention_backend = AttentionBackendName("_native_xla")
        compress(model, HALVED)
        with pytest.raises(UnsupportedError, match="'_native_xla'"):
            run(model, name)


# ---- masks over image tokens (PixArt is the host that has them)


def masked(model, x, mask):
    given = arguments("pixart", 4, 6)
    with torch.no_grad():
        return model(**{**given, "hidden_states": x, "attention_mask": mask}).sample


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_tokens_do_not_show_and_whole_cells_can_be_hidden(pixart, kind):
    x = arguments("pixart", 4, 6)["hidden_states"]
    mask = torch.ones(2, 4, 6)
    mask[0, :, 3:] = 0  # cuts through cells
    mask[1, 2:] = 0
    compress(pixart, KVCompression(kind, 2, "all"))
    changed = x.clone()
    changed[0, :, :, 6:] += 3.0
    changed[1, :, 4:] += 3.0
    patches = mask.bool()[:, None].repeat_interleave(2, 2).repeat_interleave(2, 3)
    before, after = (masked(pixart, y, mask.flatten(1)) for y in (x, changed))
    patches = patches.expand_as(before)
    torch.testing.assert_close(before[patches], after[patches], rtol=1e-4, atol=1e-5)
    assert (before - after)[~patches].abs().max() > 1e-2
    nothing = masked(pixart, x, torch.ones(2, 24))
    torch.testing.assert_close(nothing, run(pixart, "pixart", 4, 6), rtol=1e-4, atol=1e-5)


def test_a_mask_needs_a_backend_that_takes_one(pixart):
    compress(pixart, HALVED)
    pixart.set_attention_backend("_native_flash")
    with pytest.raises(UnsupportedError, match="'_native_flash'"):
        masked(pixart, arguments("pixart")["hidden_states"], torch.ones(2, 24))


def test_a_mask_per_query_is_refused(pixart):
    compress(pixart, HALVED)
    with pytest.raises(UnsupportedError, match="between queries"):
        masked(pixart, arguments("pixart")["hidden_states"], torch.zeros(2, 24, 24))


# ---- ratios that follow the noise level


def at(model, name, timestep):
    given = arguments(name, 4, 8)
    with torch.no_grad():
        return model(**{**given, "timestep": timestep}, return_dict=False)[0]


@pytest.mark.parametrize("name", ["pixart", "flux"])
def test_the_ratio_follows_the_noise_level(name):
    model = build_host(name)
    one = 1.0 if name == "flux" else 1000.0  # FLUX is told sigma itself
    schedule = KVCompression("average", Schedule({0.3: 2, 0.6: 4}), "all")
    for level, ratio in ((0.9, 4), (0.6, 4), (0.4, 2), (0.1, 1)):
        t = torch.full((2,), level * one)
        compress(model, KVCompression("average", ratio, "all"))
        expected = at(model, name, t)
        restore(model)
        compress(model, schedule)
        assert torch.equal(at(model, name, t), expected)
        restore(model)


def test_one_call_has_one_level(pixart):
    compress(pixart, KVCompression("average", Schedule({0.5: 2}), "all"))
    with pytest.raises(UnsupportedError, match="one level per call"):
        at(pixart, "pixart", torch.tensor([900.0, 100.0]))
    restore(pixart)
    compress(pixart, HALVED)  # a constant ratio does not look at it
    at(pixart, "pixart", torch.tensor([900.0, 100.0]))


def test_layers_may_differ(pixart):
    compress(pixart, KVCompression("average", 2, "all", per_layer={1: (1, 3)}))
    lengths = []
    stock = F.scaled_dot_product_attention

    def record(query, key, value, **settings):
        lengths.append(key.shape[2])
        return stock(query, key, value, **settings)

    F.scaled_dot_product_attention = record
    try:
        run(pixart, "pixart", 4, 6)
    finally:
        F.scaled_dot_product_attention = stock
    assert lengths == [6, 5, 8, 5]  # image, text, image, text


# ---- with everything else


def halved(name, dtype):
    given = {
        key: value.to(dtype)
        if torch.is_tensor(value) and key not in ("timestep", "img_ids")
        else value
        for key, value in arguments(name).items()
    }
    if name == "hunyuan":
        given["timestep"] = given["timestep"].to(dtype)
    if name == "pixart-micro":
        given["added_cond_kwargs"] = {k: v.to(dtype) for k, v in given["added_cond_kwargs"].items()}
    return given


@pytest.mark.parametrize("name", ["pixart", "hunyuan", "sd3", "flux", "wan", "cogvideox"])
@pytest.mark.parametrize("kind", ["average", "conv", "uniform"])
def test_fused_projections_give_the_same(name, kind):
    model = build_host(name)
    compression = KVCompression(kind, 2, "all")
    expected = run(compress(model, compression), name)
    restore(model)
    model.fuse_qkv_projections()
    plain = run(model, name)
    torch.testing.assert_close(
        run(compress(model, compression), name), expected, rtol=1e-4, atol=1e-4
    )
    layer = attentions(model, name)[0][0]
    hook = layer.to_qkv.forward
    layer.to_qkv.forward = lambda x: hook(x)  # as accelerate's hooks do
    torch.testing.assert_close(run(model, name), expected, rtol=1e-4, atol=1e-4)
    del layer.to_qkv.forward
    restore(model)
    assert torch.equal(run(model, name), plain)


def test_a_copy_is_compressed_on_its_own(host):
    name, model = host
    compress(model, HALVED)
    expected = run(model, name)
    again = copy.deepcopy(model)
    restore(model)
    plain = run(model, name, 5, 3)
    assert torch.equal(run(again, name), expected)
    assert not torch.equal(run(again, name, 5, 3), plain)
    restore(again)
    assert torch.equal(run(again, name, 5, 3), plain)


@pytest.mark.parametrize("name", ["pixart", "sd35", "flux", "wan", "cogvideox"])
def test_gradient_checkpointing_gives_the_same_gradients(name):
    model = build_host(name)
    compress(model, KVCompression("conv", 2, "all"))

    def gradients():
        model.zero_grad()
        model(**arguments(name), return_dict=False)[0].square().mean().backward()
        return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    model.train().enable_gradient_checkpointing()
    for key, grad in gradients().items():
        torch.testing.assert_close(grad, plain[key], rtol=1e-4, atol=1e-6)


def test_checkpoints_of_a_call_of_another_size_are_not_recomputed_wrongly(pixart):
    compress(pixart, HALVED)
    pixart.train().enable_gradient_checkpointing()
    first = pixart(**arguments("pixart"), return_dict=False)[0]
    run(pixart, "pixart", 5, 5)
    with pytest.raises(UnsupportedError, match="go backward"):
        first.sum().backward()


@pytest.mark.parametrize("name", ["sd3", "flux", "wan"])
def test_a_lora_goes_on_working(name):
    from peft import LoraConfig

    model = build_host(name)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False))
    plain = run(model, name)
    compress(model, HALVED)
    ours = run(model, name)
    model.disable_adapters()
    assert not torch.equal(run(model, name), ours)
    model.enable_adapters()
    assert torch.equal(run(model, name), ours)
    restore(model)
    assert torch.equal(run(model, name), plain)


@pytest.mark.parametrize("first", ["compress", "offload"])
@pytest.mark.parametrize("name", ["pixart", "flux"])
def test_offloading_layer_by_layer(name, first):
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_submodules

    model, compression = build_host(name), KVCompression("conv", 2, "all")
    expected = run(compress(model, compression), name)
    if first == "offload":
        restore(model)
    cpu_offload(model, torch.device("cpu"))
    assert attentions(model, name)[0][0].to_k.weight.device.type == "meta"
    if first == "offload":
        compress(model, compression)
    assert torch.equal(run(model, name), expected)
    restore(model)
    remove_hook_from_submodules(model)
    assert torch.equal(run(compress(model, compression), name), expected)


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
@pytest.mark.parametrize("first", ["compress", "offload"])
@pytest.mark.parametrize("name", ["pixart", "sd35", "flux"])
def test_offloading_in_groups_to_disk(name, first, kind, tmp_path):
    """Between calls the weights are on the disk, and where they were lies anything."""
    compression = KVCompression("conv", 2, "all")
    model = trained(name, compression)
    file, expected = save_adapter(model, tmp_path), run(model, name)
    if first == "offload":
        restore(model)
    model.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_type=kind,
        num_blocks_per_group=1 if kind == "block_level" else None,
        offload_to_disk_path=str(tmp_path / "weights"),
    )
    if first == "offload":
        load_adapter(compress(model, compression), file)
    for _ in range(2):
        assert torch.equal(run(model, name), expected)
    restore(model)
    load_adapter(compress(model, compression), file)
    assert torch.equal(run(model, name), expected)


def test_blocks_that_are_offloaded_with_streams_get_no_new_weights(tmp_path):
    """Their groups list the weights when they are made; the compressors stand beside."""
    name, compression = "pixart", KVCompression("conv", 2, "all")
    model = trained(name, compression)
    file, expected = save_adapter(model, tmp_path), run(model, name)
    restore(model)
    plain = run(model, name)
    model.enable_group_offload(torch.device("cpu"), num_blocks_per_group=1)
    group = model.transformer_blocks[1]._diffusers_hook.get_hook("group_offloading").group
    group.stream = "only CUDA has some"
    weights = dict(model.named_parameters())
    load_adapter(compress(model, compression), file)
    group.stream = None
    assert dict(model.named_parameters()).keys() == weights.keys()
    assert torch.equal(run(model, name), expected)
    restore(model)
    assert not hasattr(model.transformer_blocks[0].attn1, "kv")
    assert torch.equal(run(model, name), plain)


@pytest.mark.gpu
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
@pytest.mark.parametrize("first", ["compress", "offload"])
def test_offloading_in_groups_from_cuda(first, kind, stream, tmp_path):
    name, compression = "pixart", KVCompression("conv", 2, "all")
    model = trained(name, compression)
    file, expected = save_adapter(model, tmp_path), run(model, name)
    if first == "offload":
        restore(model)
    model.enable_group_offload(
        onload_device=torch.device("cuda"),
        offload_type=kind,
        num_blocks_per_group=1 if kind == "block_level" else None,
        use_stream=stream,
    )
    if first == "offload":
        load_adapter(compress(model, compression), file)
    for _ in range(3):  # with streams, what is loaded ahead is known from the first call on
        torch.testing.assert_close(run(model, name).cpu(), expected, rtol=1e-4, atol=1e-4)
    restore(model)


@pytest.mark.parametrize("first", ["compress", "cast"])
@pytest.mark.parametrize("name", ["pixart", "sd35", "flux", "wan"])
def test_casting_layer_by_layer(name, first, tmp_path):
    """The network's weights lie in eight bits; those of the compressors stay as they are."""
    compression = KVCompression("conv", 2, "all")
    file = save_adapter(trained(name, compression), tmp_path)
    model = build_host(name).bfloat16()
    if first == "compress":
        load_adapter(compress(model, compression), file)
    model.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
    if first == "cast":
        load_adapter(compress(model, compression), file)
    assert attentions(model, name)[0][0].to_k.weight.dtype == torch.float8_e4m3fn
    rounded = build_host(name).bfloat16()
    state = {k: v.bfloat16() for k, v in model.state_dict().items() if ".kv." not in k}
    rounded.load_state_dict(state)
    load_adapter(compress(rounded, compression), file)
    for _ in range(2):
        with torch.no_grad():
            ours, exact = (
                network(**halved(name, torch.bfloat16), return_dict=False)[0]
                for network in (model, rounded)
            )
        assert ours.dtype == torch.bfloat16
        assert torch.equal(ours, exact)


def test_autocast_chooses_the_types_of_the_compressors_too(pixart):
    """As it does with torch's own layers: of the norm's weights nothing is rounded."""
    compress(pixart, KVCompression("conv", 2, "all"))
    kv = pixart.transformer_blocks[0].attn1.kv
    sr, norm = nn.Conv2d(24, 24, 2, stride=2, groups=24), nn.LayerNorm(24)
    for layer in (norm, sr):
        for p in layer.parameters():
            p.data.add_(torch.randn_like(p))
    kv.load_state_dict(nn.ModuleDict({"sr": sr, "norm": norm}).state_dict())
    x = torch.randn(2, 24, 24).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        k, _ = kv(x, x, 4, 6)
        expected = norm(sr(x.mT.reshape(2, 24, 4, 6)).flatten(2).mT)
    assert k.dtype == expected.dtype
    assert torch.equal(k, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_stays_half_and_close(host, kind, dtype):
    name, model = host
    compression = KVCompression(kind, 2, "all")
    exact = run(compress(model, compression), name)
    restore(model)
    half = compress(copy.deepcopy(model).to(dtype), compression)
    with torch.no_grad():
        out = half(**halved(name, dtype), return_dict=False)[0]
    assert out.dtype == dtype
    assert (out.float() - exact).abs().max() < 0.1 * exact.abs().max()


def test_the_compressors_follow_dtype_and_mode(pixart):
    compress(pixart, KVCompression("conv", 2, "all"))
    layer = pixart.transformer_blocks[0].attn1
    assert not layer.kv.training
    pixart.double().train()
    assert layer.kv.sr.weight.dtype == torch.double
    assert layer.kv.training
    assert "transformer_blocks.0.attn1.kv.sr.weight" in dict(pixart.named_parameters())


def test_restoring_inside_a_call_waits_for_its_end():
    import tiny

    from w2sdiff import Plain, attach

    pipe = tiny.build("pixart")
    cls = type(pipe.transformer)
    compress(pipe.transformer, HALVED)

    def too_early(*_):
        with pytest.raises(InputError, match="leave that first"):
            restore(pipe.transformer)
        refused.append(True)

    refused = []
    with attach(pipe, Plain()):
        tiny.latents(pipe, "pixart", callback=too_early, callback_steps=1)
    assert refused
    restore(pipe.transformer)
    assert type(pipe.transformer) is cls
    with attach(pipe, Plain()):
        compress(pipe.transformer, HALVED)
        tiny.latents(pipe, "pixart")
    restore(pipe.transformer)  # compressed inside, restored after: attach took its class along
    assert type(pipe.transformer) is cls
    assert not any(hasattr(block.attn1, "kv") for block in pipe.transformer.transformer_blocks)


def test_the_grid_is_that_of_a_call(pixart):
    compress(pixart, HALVED)
    with pytest.raises(UnsupportedError, match="not its forward"):
        pixart.forward(**arguments("pixart"))


def test_switching_a_patch(pixart):
    plain = run(pixart, "pixart")
    first, second = Patch(pixart, HALVED), Patch(pixart, KVCompression("conv", 2, "deep"))
    outputs = []
    for patch in (first, second, first, second):
        patch.enable()
        outputs.append(run(pixart, "pixart"))
        patch.disable()
        assert torch.equal(run(pixart, "pixart"), plain)
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[1], outputs[3])
    assert not torch.equal(outputs[0], outputs[1])


# ---- adapters


def trained(name, compression):
    model = compress(build_host(name), compression)
    generator = torch.Generator().manual_seed(5)
    for block in attentions(model, name):
        for layer in block:
            for p in getattr(layer, "kv", nn.Module()).parameters():
                p.data.add_(0.3 * torch.randn(p.shape, generator=generator))
    return model


@pytest.mark.parametrize("where", ["adapter.safetensors", "folder"])
@pytest.mark.parametrize("name", ["pixart", "sd35", "flux"])
def test_an_adapter_comes_back_bit_for_bit(name, where, tmp_path):
    compression = KVCompression("conv", 2, "deep")
    model = trained(name, compression)
    expected = run(model, name)
    file = save_adapter(model, tmp_path / where)
    assert file.suffix == ".safetensors"
    fresh = build_host(name)
    compress(fresh, adapter_compression(tmp_path / where))
    assert not torch.equal(run(fresh, name), expected)
    load_adapter(fresh, tmp_path / where)
    assert torch.equal(run(fresh, name), expected)


def test_an_adapter_of_something_else_is_refused(tmp_path):
    compression = KVCompression("conv", 2, "deep")
    file = save_adapter(trained("pixart", compression), tmp_path)
    with pytest.raises(UnsupportedError, match="its host is PixArtTransformer2DModel"):
        load_adapter(compress(build_host("sd3"), compression), file)
    with pytest.raises(UnsupportedError, match="another compression"):
        load_adapter(compress(build_host("pixart"), KVCompression("conv", 4, "deep")), file)
    with pytest.raises(InputError, match="not compressed"):
        load_adapter(build_host("pixart"), file)
    with pytest.raises(InputError, match="No adapter"):
        adapter_compression(tmp_path / "missing.safetensors")
    (tmp_path / "text.safetensors").write_text("text")
    with pytest.raises(InputError, match="not a safetensors file"):
        adapter_compression(tmp_path / "text.safetensors")
    from safetensors.torch import save_file

    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, other)
    with pytest.raises(InputError, match="not an adapter"):
        adapter_compression(other)
    for said in ("{", "[]", "{}", '{"compression": {"kind": "konv"}}', '{"compression": 2}'):
        save_file({"a": torch.zeros(1)}, other, metadata={"w2sdiff_kv": said})
        with pytest.raises(InputError, match="damaged adapter"):
            adapter_compression(other)


def test_an_adapter_of_a_network_of_another_depth_or_width_is_refused(tmp_path):
    from diffusers import PixArtTransformer2DModel

    file = save_adapter(trained("pixart", KVCompression("conv", 2, [0])), tmp_path)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16}
    for changes, says in (({"num_layers": 3}, "its layers is 2"), ({}, r"its channels is \[")):
        model = PixArtTransformer2DModel(**{"num_layers": 2, **sizes, **changes}, sample_size=8)
        with pytest.raises(UnsupportedError, match=says):
            load_adapter(compress(model, KVCompression("conv", 2, [0])), file)


def test_a_damaged_adapter_is_refused_by_the_layer(tmp_path):
    from safetensors.torch import load_file, save_file

    file = save_adapter(trained("pixart", KVCompression("conv", 2, "deep")), tmp_path)
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    tensors = load_file(file)
    tensors.pop(next(name for name in tensors if name.endswith("sr.bias")))
    save_file(tensors, file, metadata=about)
    model = compress(build_host("pixart"), KVCompression("conv", 2, "deep"))
    with pytest.raises(
        UnsupportedError, match=r"does not fit transformer_blocks\.1\.attn1.*sr.bias"
    ):
        load_adapter(model, file)

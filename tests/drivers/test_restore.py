"""After `attach`, and after any exception inside it, the pipeline is what it was, part by part."""

from __future__ import annotations

import pytest
import tiny
import torch
from accelerate import cpu_offload
from restored import compare, fingerprint, lora_state

from w2sdiff import W2SD, Checkpoint, Guidance, InputError, Lora, Plain, Prompt, attach


@pytest.fixture(params=["sdxl", "flux-true-cfg"])
def family(request):
    return request.param


@pytest.fixture
def pipe(family, tmp_path):
    pipe = tiny.build(family)
    tiny.add_lora(pipe, family, tmp_path)
    tiny.add_lora(pipe, family, tmp_path, name="other", seed=1)
    pipe.set_adapters(["style", "other"], [0.7, -0.2])
    return pipe


@pytest.fixture
def method(family):
    return W2SD(
        strong=Lora("style", 1.3) | Guidance(2.0) | Prompt("a cat"),
        weak=Checkpoint(tiny.build_denoiser(family)) | Guidance(1.0),
        base=Lora("other", 0.5),
    )


def test_after_the_context(pipe, family, method):
    stock = tiny.latents(pipe, family)
    before = fingerprint(pipe)
    with attach(pipe, method):
        assert not torch.equal(tiny.latents(pipe, family), stock)
    compare(before, fingerprint(pipe))
    assert torch.equal(tiny.latents(pipe, family), stock)
    compare(before, fingerprint(pipe))


def test_between_the_calls_too(pipe, family, method):
    """LoRA weights and modules are those of the user as soon as a call has returned."""
    tiny.latents(pipe, family)
    with attach(pipe, method):
        scalings = lambda: [  # noqa: E731
            lora_state(module) for module in tiny.denoiser(pipe, family).modules()
        ]
        before = scalings(), id(tiny.denoiser(pipe, family)), dict(pipe.config)
        tiny.latents(pipe, family)
        assert (scalings(), id(tiny.denoiser(pipe, family)), dict(pipe.config)) == before


class OnPurposeError(Exception):
    pass


def fail_at(call):
    count = 0

    def hook(*_):
        nonlocal count
        count += 1
        if count == call:
            raise OnPurposeError

    return hook


@pytest.mark.parametrize("where", ["strong", "weak", "base", "later"])
def test_after_an_exception_inside_the_denoiser(pipe, family, where):
    other = tiny.build_denoiser(family)
    calls_of_a_request = {"sdxl": 1, "flux-true-cfg": 2}[family]
    method = W2SD(strong=Lora("style", 1.3), weak=Checkpoint(other), base=Lora("other", 0.5))
    stock = tiny.latents(pipe, family)
    before = fingerprint(pipe)
    own = tiny.denoiser(pipe, family)
    target, call = {
        "strong": (own, 1),
        "weak": (other, 1),
        "base": (own, 1 + calls_of_a_request),
        "later": (own, 1 + 3 * calls_of_a_request),
    }[where]
    handle = target.register_forward_hook(fail_at(call))
    classes = type(own), type(other)
    with pytest.raises(OnPurposeError), attach(pipe, method):
        tiny.latents(pipe, family)
    handle.remove()
    compare(before, fingerprint(pipe))
    assert (type(own), type(other)) == classes
    assert torch.equal(tiny.latents(pipe, family), stock)


def test_after_an_exception_inside_a_callback(pipe, family, method):
    def callback(pipe, i, t, kwargs):
        if i == 1:
            raise OnPurposeError
        return kwargs

    stock = tiny.latents(pipe, family)
    before = fingerprint(pipe)
    with pytest.raises(OnPurposeError), attach(pipe, method):
        tiny.latents(pipe, family, callback_on_step_end=callback)
    compare(before, fingerprint(pipe))
    assert torch.equal(tiny.latents(pipe, family), stock)


def test_after_an_exception_in_the_users_own_block(pipe, family, method):
    tiny.latents(pipe, family)
    before = fingerprint(pipe)
    with pytest.raises(OnPurposeError), attach(pipe, method):
        raise OnPurposeError
    compare(before, fingerprint(pipe))


def test_a_caught_exception_leaves_the_context_usable(pipe, family, method):
    with attach(pipe, method):
        expected = tiny.latents(pipe, family)
        handle = tiny.denoiser(pipe, family).register_forward_hook(fail_at(2))
        with pytest.raises(OnPurposeError):
            tiny.latents(pipe, family)
        handle.remove()
        assert torch.equal(tiny.latents(pipe, family), expected)


def test_traceback_points_into_diffusers():
    import traceback

    pipe = tiny.build("sdxl")
    pipe.unet.register_forward_hook(fail_at(1))
    with pytest.raises(OnPurposeError) as error, attach(pipe, Plain()):
        tiny.latents(pipe, "sdxl")
    frames = traceback.extract_tb(error.tb)
    (frame,) = [f for f in frames if f.filename.endswith("pipeline_stable_diffusion_xl.py")]
    assert frame.name == "__call__"
    assert "self.unet(" in frame.line


def test_garbage_is_let_go(pipe, family):
    """A weak checkpoint that the user no longer holds is freed with the context."""
    import gc
    import weakref

    other = tiny.build_denoiser(family)
    alive = weakref.ref(other)
    with attach(pipe, W2SD(weak=Checkpoint(other))) as run:
        tiny.latents(pipe, family)
    del other, run
    gc.collect()
    assert alive() is None


OFFLOADS = {
    "model": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    # what enable_sequential_cpu_offload does, to the denoiser alone: with the CPU as its device,
    # accelerate cannot put back the integer buffers of the text encoders
    "sequential": lambda pipe: cpu_offload(pipe.unet, torch.device("cpu")),
    "group": lambda pipe: pipe.unet.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="leaf_level",
    ),
}


def hooks(pipe):
    """The places in which accelerate and diffusers hang their hooks."""
    return {
        f"{name}.{path}": ("_hf_hook" in module.__dict__, "_diffusers_hook" in module.__dict__)
        for name, part in pipe.components.items()
        if isinstance(part, torch.nn.Module)
        for path, module in part.named_modules()
    }


@pytest.mark.parametrize("kind", OFFLOADS)
def test_offloading(kind):
    plain_pipe, pipe = tiny.build("sdxl"), tiny.build("sdxl")
    stock = tiny.latents(plain_pipe, "sdxl")
    with attach(plain_pipe, W2SD(weak=Guidance(1.0))):
        reflected = tiny.latents(plain_pipe, "sdxl")
    OFFLOADS[kind](pipe)
    assert torch.equal(tiny.latents(pipe, "sdxl"), stock)
    hung = hooks(pipe)
    assert any(any(kinds) for kinds in hung.values())
    with attach(pipe, Plain()):
        assert torch.equal(tiny.latents(pipe, "sdxl"), stock)
    with attach(pipe, W2SD(weak=Guidance(1.0))):
        torch.testing.assert_close(tiny.latents(pipe, "sdxl"), reflected, rtol=0, atol=1e-5)
    assert hooks(pipe) == hung
    assert torch.equal(tiny.latents(pipe, "sdxl"), stock)
    pipe.unet.register_forward_hook(fail_at(2))
    with pytest.raises(OnPurposeError), attach(pipe, W2SD(weak=Guidance(1.0))):
        tiny.latents(pipe, "sdxl")
    assert hooks(pipe) == hung
    assert torch.equal(tiny.latents(pipe, "sdxl"), stock)


@pytest.mark.parametrize("kind", ["model", "sequential"])
def test_a_weak_checkpoint_under_offloading(kind):
    plain_pipe, pipe, other = tiny.build("sdxl"), tiny.build("sdxl"), tiny.build_denoiser("sdxl")
    method = W2SD(weak=Checkpoint(other))
    with attach(plain_pipe, method):
        expected = tiny.latents(plain_pipe, "sdxl")
    OFFLOADS[kind](pipe)
    with attach(pipe, method):
        torch.testing.assert_close(tiny.latents(pipe, "sdxl"), expected, rtol=0, atol=1e-5)
    assert not any("_hf_hook" in module.__dict__ for module in other.modules())


def test_nested_attach_is_refused_and_harmless():
    pipe = tiny.build("sd")
    with attach(pipe, W2SD(weak=Guidance(1.0))) as run:
        expected = tiny.latents(pipe, "sd")
        with pytest.raises(InputError, match="attach"), attach(pipe, Plain()):
            pass
        assert torch.equal(tiny.latents(pipe, "sd"), expected)
        assert run.stats.calls
    with attach(pipe, Plain()):
        tiny.latents(pipe, "sd")


def test_two_pipelines_that_share_their_modules():
    """`from_pipe` shares weights and scheduler; what is attached to one must not leak into the
    other afterwards.
    """
    from diffusers import StableDiffusionXLImg2ImgPipeline

    pipe = tiny.build("sdxl")
    stock = tiny.latents(pipe, "sdxl")
    second = StableDiffusionXLImg2ImgPipeline(**pipe.components)
    second.set_progress_bar_config(disable=True)
    call = {
        "prompt": tiny.PROMPT,
        "image": torch.zeros(1, 3, 16, 16),
        "strength": 0.6,
        "num_inference_steps": 5,
        "output_type": "latent",
    }
    image = lambda: second(**call, generator=torch.Generator().manual_seed(0)).images  # noqa: E731
    expected = image()
    with attach(second, Plain()) as run:
        assert torch.equal(image(), expected)
        assert run.stats.calls == 3
    with attach(second, W2SD(weak=Guidance(1.0))) as run:
        assert not torch.equal(image(), expected)
        assert run.stats.calls == 3 * 2 + 1
    assert torch.equal(tiny.latents(pipe, "sdxl"), stock)


@pytest.mark.parametrize("how", ["torch.compile(module)", "module.compile()"])
def test_compiled_denoiser(how):
    """With the eager backend: what is tested is that attaching neither breaks nor recompiles for
    ever.
    """
    torch._dynamo.reset()
    pipe = tiny.build("sd")
    expected = {}
    for name, method in (("plain", Plain()), ("w2sd", W2SD(weak=Guidance(1.0)))):
        with attach(pipe, method):
            expected[name] = tiny.latents(pipe, "sd", steps=2)
    if how == "module.compile()":
        pipe.unet.compile(backend="eager")
    else:
        pipe.unet = torch.compile(pipe.unet, backend="eager")
    compiled = pipe.unet
    stock = tiny.latents(pipe, "sd", steps=2)
    with attach(pipe, Plain()) as run:
        assert torch.equal(tiny.latents(pipe, "sd", steps=2), stock)
        assert run.stats.calls == 2
    with attach(pipe, W2SD(weak=Guidance(1.0))):
        w2sd = tiny.latents(pipe, "sd", steps=2)
    torch.testing.assert_close(w2sd, expected["w2sd"], rtol=0, atol=1e-5)
    assert pipe.unet is compiled
    assert torch.equal(tiny.latents(pipe, "sd", steps=2), stock)
    torch.testing.assert_close(stock, expected["plain"], rtol=0, atol=1e-5)

"""`attach` on modular pipelines, beside the classic pipeline of the same parts."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny
import torch
from diffusers import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    FluxAutoBlocks,
    StableDiffusionXLAutoBlocks,
    Wan22Blocks,
    WanBlocks,
    modular_pipelines,
)
from diffusers.modular_pipelines.modular_pipeline import LoopSequentialPipelineBlocks
from PIL import Image
from restored import compare, fingerprint

from w2sdiff import W2SD, Checkpoint, Guidance, Lora, Plain, Prompt, UnsupportedError, attach
from w2sdiff.drivers.loops import why_not
from w2sdiff.methods.base import Eval, Method, Step, Steps
from w2sdiff.testing import VARIANTS, Variant

STEPS = 4
MINOR = ".".join(diffusers.__version__.split(".")[:2])
PINNED = Path(__file__).with_name(f"loops-{MINOR}.txt")


@dataclass(frozen=True)
class Host:
    """A classic pipeline, and the blocks that do the same.

    Attributes:
        variant: of the classic pipeline, in the table.
        blocks: of the modular pipeline; None: this diffusers has none.
        guiders: their scales, beside the classic pipeline's arguments.
        same: whether both call the network with equal batches, so that they agree bit for bit.
        packed: the modular pipeline's latents in the classic one's form.
    """

    variant: Variant
    blocks: Callable[[], Any] | None
    guiders: dict[str, float]
    same: bool = False
    packed: Callable[[torch.Tensor], torch.Tensor] | None = None

    def modular(self, pipe: Any, **guider: Any) -> Any:
        """The modular pipeline of a classic one's parts, without the decoder."""
        if self.blocks is None:
            pytest.skip(f"diffusers {diffusers.__version__} has no such blocks")
        blocks = self.blocks()
        blocks.sub_blocks.pop("decode")
        made = blocks.init_pipeline()
        parts = {name: part for name, part in pipe.components.items() if part is not None}
        guiders = {
            name: ClassifierFreeGuidance(**{"guidance_scale": scale, **guider})
            for name, scale in self.guiders.items()
        }
        made.update_components(**parts, **guiders)
        for loop in loops(made):
            loop.set_progress_bar_config(disable=True)
        return made

    def latents(self, pipe: Any, **changes: Any) -> torch.Tensor:
        """The latents of one call, classic or modular."""
        if not isinstance(pipe, diffusers.ModularPipeline):
            return self.variant.latents(pipe, **changes)
        left = {"output_type", *(SCALES if self.guiders else [])}
        call = self.variant.call(**changes)
        call = {name: value for name, value in call.items() if name not in left}
        found = pipe(**call, output="latents")
        # FLUX's latents are unpacked in its core since diffusers 0.39.
        unpacked = self.packed is not None and found.ndim > 3
        return self.packed(found) if unpacked else found


SCALES = ("guidance_scale", "guidance_scale_2", "true_cfg_scale")


def by_size(packer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Latents as FLUX's or Qwen-Image's classic pipeline returns them."""
    return lambda x: packer._pack_latents(x, x.shape[0], x.shape[1], *x.shape[-2:])


SD3 = getattr(diffusers, "StableDiffusion3AutoBlocks", None)  # since diffusers 0.39
Z_SCALE = VARIANTS["z-image"].call()["guidance_scale"] + 1
HOSTS = {
    "sdxl": Host(VARIANTS["sdxl"], StableDiffusionXLAutoBlocks, {"guider": 5.0}),
    "sd3": Host(VARIANTS["sd3"], SD3, {"guider": 4.0}),
    "flux": Host(
        VARIANTS["flux"], FluxAutoBlocks, {}, same=True, packed=by_size(diffusers.FluxPipeline)
    ),
    "wan-2.1": Host(VARIANTS["wan-2.1"], WanBlocks, {"guider": 4.0}, same=True),
    "wan-2.2": Host(VARIANTS["wan-2.2"], Wan22Blocks, {"guider": 4.0, "guider_2": 3.0}, same=True),
    "qwen-image": Host(
        VARIANTS["qwen-image"],
        diffusers.QwenImageAutoBlocks,
        {"guider": 4.0},
        same=True,
        packed=by_size(diffusers.QwenImagePipeline),
    ),
    # Its classic pipeline's scale is one less.
    "z-image": Host(VARIANTS["z-image"], diffusers.ZImageAutoBlocks, {"guider": Z_SCALE}),
}
PAIRS: dict[str, Callable[[Any], W2SD]] = {
    "guidance": lambda _: W2SD(strong=Guidance(2.0), weak=Guidance(1.0)),
    "halves": lambda _: W2SD(strong=Guidance(0.0), weak=Guidance(1.0)),
    "checkpoint": lambda other: W2SD(weak=Checkpoint(other)),
    "lora": lambda _: W2SD(strong=Lora("style", 1.2), weak=Lora("style", -0.5)),
    "prompt": lambda _: W2SD(strong=Prompt("{prompt}, best"), weak=Prompt("a blue square")),
    "stacked": lambda other: W2SD(
        strong=Guidance(2.0) | Prompt("{prompt}, best"),
        weak=Guidance(1.0) | Checkpoint(other),
        base=Lora("style", 0.3),
    ),
}
# By default one-call and two-call guidance each once; the rest are the same code.
QUICK = {
    ("sdxl", "guidance"),
    ("sd3", "prompt"),
    ("flux", "guidance"),
    ("wan-2.1", "stacked"),
    ("wan-2.1", "halves"),
    ("wan-2.2", "guidance"),
}


def loops(pipe: Any) -> list[Any]:
    found, left = [], [pipe._blocks]
    while left:
        block = left.pop()
        found += [block] if isinstance(block, LoopSequentialPipelineBlocks) else []
        left += block.sub_blocks.values()
    return found


def assert_agree(host: Host, a: torch.Tensor, b: torch.Tensor) -> None:
    if host.same:
        assert torch.equal(a, b)
    else:  # one call with two branches, and two calls: other sums
        assert (a - b).abs().max() <= 1e-5 * a.abs().max()


EVERY = [
    pytest.param(name, marks=[pytest.mark.slow] if name in ("qwen-image", "z-image") else [])
    for name in HOSTS
]


@pytest.fixture(scope="module", params=EVERY)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def pipes(name, tmp_path_factory):
    """Classic and modular pipeline around the same parts, and another denoiser."""
    host = HOSTS[name]
    classic = host.variant.build()
    modular = host.modular(classic)
    tiny.add_lora(modular, name, tmp_path_factory.mktemp(name))
    modular.set_adapters(["style"], [0.7])
    return classic, modular, host.variant.network(host.variant.build(1))


def test_plain_changes_no_bit(name, pipes):
    classic, modular, _ = pipes
    host = HOSTS[name]
    stock = host.latents(modular)
    assert_agree(host, host.latents(classic), stock)
    with attach(modular, Plain()) as run:
        assert torch.equal(host.latents(modular), stock)
    assert run.stats.evaluations == (2 * STEPS if host.guiders else STEPS)
    assert run.stats.steps == run.stats.requests == STEPS


@pytest.mark.parametrize(
    ("name", "pair"),
    [
        pytest.param(name, pair, marks=[] if (name, pair) in QUICK else [pytest.mark.slow])
        for name in HOSTS
        for pair in PAIRS
    ],
    indirect=["name"],
    scope="module",
)
def test_agrees_with_the_classic_pipeline(name, pair, pipes):
    classic, modular, other = pipes
    host, method = HOSTS[name], PAIRS[pair](other)
    with attach(classic, method) as run:
        a, expected = host.latents(classic), run.stats
    with attach(modular, method) as run:
        b, got = host.latents(modular), run.stats
    assert_agree(host, a, b)
    assert not torch.allclose(b, host.latents(modular), atol=1e-2), "the pair does nothing here"
    assert (got.evaluations, got.saved) == (expected.evaluations, expected.saved)
    assert got.reflection == pytest.approx(expected.reflection, rel=1e-4)
    if host.guiders:
        # Qwen-Image rescales by the conditional half, and needs it at scale 0 as well.
        more = STEPS - 1 if (name, pair) == ("qwen-image", "halves") else 0
        assert got.evaluations == method.cost(STEPS, guidance_scale=4.0) + more


class OnPurposeError(Exception):
    pass


def fail_at(call: int) -> Callable[..., None]:
    """A hook that lets `call` - 1 calls pass."""
    calls = iter(range(1, call + 1))

    def hook(*_: Any) -> None:
        if next(calls) == call:
            raise OnPurposeError

    return hook


@pytest.mark.parametrize("where", ["strong", "weak", "base"])
@pytest.mark.parametrize("name", ["wan-2.1"], indirect=True, scope="module")
def test_restored_also_after_an_exception(name, pipes, where):
    _, modular, other = pipes
    host = HOSTS[name]
    stock = host.latents(modular)
    before = fingerprint(modular), [(type(loop), sorted(vars(loop))) for loop in loops(modular)]
    method = PAIRS["stacked"](other)
    seen = {"strong": host.variant.network(modular), "weak": other}.get(where)
    seen = seen or host.variant.network(modular)
    calls = {"strong": 1, "weak": 1, "base": 3}[where]
    hook = seen.register_forward_pre_hook(fail_at(calls))
    with pytest.raises(OnPurposeError), attach(modular, method):
        host.latents(modular)
    hook.remove()
    after = fingerprint(modular), [(type(loop), sorted(vars(loop))) for loop in loops(modular)]
    compare(before[0], after[0])
    assert before[1] == after[1]
    assert torch.equal(host.latents(modular), stock)


# ---- SDXL: guiders, parts of the loop, other tasks


@pytest.fixture(scope="module")
def sdxl():
    host = HOSTS["sdxl"]
    classic = host.variant.build()
    return host, classic, host.modular(classic)


@dataclass(frozen=True)
class Peek(Method):
    """Asks and forgets: a request must leave no trace."""

    kind = "peek"
    base: Any = None
    strong: Any = None

    def __post_init__(self) -> None:
        self._normalise_roles()

    def steps(self, step: Step) -> Steps:
        yield Eval(step.x + 1, "strong", at=step.this)
        return (yield Eval(step.x, "base", at=step.this)), step.x


@pytest.mark.parametrize("scheduler", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"])
def test_a_request_leaves_no_trace(sdxl, scheduler):
    """Not in a guider with momentum, nor in a scheduler that draws noise."""
    host, classic, _ = sdxl
    modular = host.modular(classic)
    guider = AdaptiveProjectedGuidance(
        guidance_scale=5.0, adaptive_projected_guidance_momentum=-0.5
    )
    stepper = getattr(diffusers, scheduler).from_config(modular.scheduler.config)
    modular.update_components(guider=guider, scheduler=stepper)
    stock = host.latents(modular)
    with attach(modular, Peek()) as run:
        assert torch.equal(host.latents(modular), stock)
    assert run.stats.requests == 2 * STEPS


def test_momentum_counts():
    """The test before can fail: the guider's momentum does something."""
    host = HOSTS["sdxl"]
    pipe = host.variant.build()
    found = []
    for momentum in (0.0, -0.5):
        modular = host.modular(pipe)
        name = "adaptive_projected_guidance_momentum"
        modular.update_components(guider=AdaptiveProjectedGuidance(**{name: momentum}))
        found.append(host.latents(modular))
    assert not torch.allclose(*found, atol=1e-2)


def test_original_formulation_is_a_scale_of_one_more(sdxl):
    host, classic, modular = sdxl
    original = host.modular(classic, guidance_scale=4.0, use_original_formulation=True)
    method = W2SD(strong=Guidance(2.0), weak=Guidance(0.0))
    found = []
    for pipe in (modular, original):
        with attach(pipe, method):
            found.append(host.latents(pipe))
    assert (found[0] - found[1]).abs().max() <= 1e-5 * found[0].abs().max()


def test_guidance_that_stops(sdxl):
    """Steps past `stop` have one branch; an edit of guidance says so at the right step."""
    host, classic, _ = sdxl
    modular = host.modular(classic, stop=0.5)
    with attach(modular, W2SD(weak=Guidance(1.0))) as run:
        host.latents(modular)
    assert run.stats.evaluations == (2 + 1 + 2) + (2 + 1 + 2) + 3 + 1
    # A guider remembers its last step, by which diffusers 0.42 decides what the next call encodes.
    modular = host.modular(classic, stop=0.5)
    with attach(modular, W2SD(weak=Guidance(2.0))), pytest.raises(UnsupportedError, match="off at"):
        host.latents(modular)


def test_nonlinear_guider(sdxl):
    host, classic, _ = sdxl
    modular = host.modular(classic)
    modular.update_components(guider=AdaptiveProjectedGuidance())
    with (
        pytest.raises(UnsupportedError, match="AdaptiveProjectedGuidance"),
        attach(modular, W2SD(weak=Guidance(1.0))),
    ):
        pass
    stock = host.latents(modular)
    with attach(modular, W2SD(weak=Prompt("a blue square"))):
        assert not torch.allclose(host.latents(modular), stock, atol=1e-2)


def test_blocks_after_the_step_run_once(sdxl):
    host, classic, _ = sdxl
    seen: list[int] = []

    class Note(diffusers.ModularPipelineBlocks):
        def __call__(self, components: Any, block_state: Any, **told: Any) -> Any:
            seen.append(told["i"])
            return components, block_state

    modular = host.modular(classic)
    for loop in loops(modular):
        loop.sub_blocks["note"] = Note()
    with attach(modular, W2SD(weak=Prompt("a blue square"))):
        host.latents(modular)
    assert seen == list(range(STEPS))


IMAGE = Image.new("RGB", (16, 16), (200, 40, 90))
MASK = Image.fromarray(torch.eye(16).mul(255).byte().numpy())


def test_image_to_image_starts_late(sdxl):
    host, classic, modular = sdxl
    classic = diffusers.StableDiffusionXLImg2ImgPipeline(**classic.components)
    classic.set_progress_bar_config(disable=True)
    inputs = {"image": IMAGE, "strength": 0.7}
    call = {
        key: value for key, value in host.variant.call().items() if key not in ("height", "width")
    }
    method = W2SD(strong=Guidance(2.0), weak=Prompt("a blue square"))
    with attach(classic, method), torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        expected = classic(**{**call, **inputs, "generator": generator}).images
    with attach(modular, method):
        got = host.latents(modular, **inputs)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_inpainting_blends_once(sdxl):
    """Not beside the classic pipeline, which draws its noise in another order."""
    host, _, modular = sdxl
    inputs = {"image": IMAGE, "mask_image": MASK, "strength": 0.99}
    stock = host.latents(modular, **inputs)
    with attach(modular, Peek()) as run:
        assert torch.equal(host.latents(modular, **inputs), stock)
    assert run.stats.requests == 2 * run.stats.steps > 0
    with attach(modular, W2SD(weak=Prompt("a blue square"))):
        assert not torch.allclose(host.latents(modular, **inputs), stock, atol=1e-2)


# ---- refusals


def test_no_words_without_a_text_encoder():
    host = HOSTS["sdxl"]
    blocks = StableDiffusionXLAutoBlocks()
    for part in ("text_encoder", "decode"):
        blocks.sub_blocks.pop(part)
    modular = blocks.init_pipeline()
    parts = host.variant.build().components
    modular.update_components(unet=parts["unet"], scheduler=parts["scheduler"], vae=parts["vae"])
    with (
        pytest.raises(UnsupportedError, match="needs prompt, which no block"),
        attach(modular, W2SD(weak=Prompt("a blue square"))),
    ):
        pass


def test_no_loop_of_blocks():
    blocks = StableDiffusionXLAutoBlocks().sub_blocks["text_encoder"]
    with (
        pytest.raises(UnsupportedError, match="no denoising loop of blocks"),
        attach(blocks.init_pipeline(), Plain()),
    ):
        pass


def test_every_loop_refused_says_why(sdxl):
    host, classic, _ = sdxl

    class Draws(diffusers.ModularPipelineBlocks):
        def __call__(self, components: Any, block_state: Any, **_: Any) -> Any:
            block_state.latents = torch.randn_like(block_state.latents)
            return components, block_state

    modular = host.modular(classic)
    for loop in loops(modular):
        loop.sub_blocks["draws"] = Draws()
    with (
        pytest.raises(UnsupportedError, match="draws random numbers") as refused,
        attach(modular, Plain()),
    ):
        pass
    assert "\n" not in str(refused.value)


def scan() -> list[str]:
    """Every installed loop, and why it is refused."""
    for package in pkgutil.iter_modules(modular_pipelines.__path__):
        if package.ispkg:
            importlib.import_module(f"{modular_pipelines.__name__}.{package.name}.denoise")
    found, left = {}, [LoopSequentialPipelineBlocks]
    while left:
        cls = left.pop()
        left += cls.__subclasses__()
        if cls.block_classes and cls.__module__.startswith("diffusers."):
            found[cls.__name__] = why_not(cls()) or "accepted"
    return [f"{name}: {why}" for name, why in sorted(found.items())]


def test_accepted_loops_are_the_pinned_ones():
    """`python tests/drivers/test_modular.py` writes the list of the installed diffusers."""
    if not PINNED.is_file():
        pytest.skip(f"no list for diffusers {MINOR}")
    assert scan() == PINNED.read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    PINNED.write_text("\n".join(scan()) + "\n", encoding="utf-8")

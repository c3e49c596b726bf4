"""W2SD and AutoGuidance by a second, independent mechanism: wrap, capture, and call again.

w2sdiff re-runs the pipeline's own loop body. This file does the opposite: the pipeline's loop is
left alone, its denoiser and ``scheduler.step`` are wrapped, and inside ``step`` every role is
recomputed by calling the denoiser again with the arguments the pipeline used, at other latents.
Guidance is recombined by hand per family, LoRA weights go through diffusers' public
``set_adapters``, another prompt's conditioning is captured from a second call of the pipeline, and
the noise levels are derived in `grid` from the schedulers' tables. Nothing of w2sdiff but `facts`
and `grid` is imported. Where both mechanisms agree, neither is wrong by itself.

It is exact, slow and narrow: a changed guidance scale holds at every step, and a ControlNet runs
without guess mode and without another prompt.
`FAMILIES` has its facts for each variant of `w2sdiff.testing` that it applies to.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from w2sdiff.testing.facts import FAMILIES, Family
from w2sdiff.testing.grid import Grid, grid

__all__ = ["FAMILIES", "Role", "remix", "replay"]


@dataclass(frozen=True)
class Role:
    """What is different while a role speaks; the default is the pipeline as called."""

    guidance: float | None = None
    lora: tuple[str, float] | None = None
    module: nn.Module | None = None
    prompt: Mapping[str, Any] | None = (
        None  # call arguments of the other prompt, e.g. {"prompt": "a cat"}
    )


def replay(
    pipe: Any,
    family: str,
    call: Mapping[str, Any],
    *,
    strong: Role = Role(),
    weak: Role = Role(),
    base: Role = Role(),
    method: Literal["w2sd", "autoguidance", "autoguidance with base"] = "w2sd",
    times: int = 1,
    scale: float = 2.0,
    reference: bool = False,
    reflect: Callable[[int, int], bool] = lambda i, n: i < n - 1,
) -> Tensor:
    """The final latents of `method` on ``pipe(**call)``.

    Args:
        pipe: a tiny pipeline; it is left as it was.
        family: a key of `FAMILIES`.
        call: the arguments of the call; a generator in it is used up.
        strong: the role that steps down.
        weak: the role that inverts.
        base: the role of the real step.
        method: W2SD, or AutoGuidance as ``lerp(weak, strong, scale)``, or
            ``base + (scale - 1) * (strong - weak)``.
        times: reflections per step.
        scale: AutoGuidance's scale.
        reference: invert with the published code's coefficients, one level off.
        reflect: which of the n steps are reflected.
    """
    spec = FAMILIES[family]
    others = {
        id(r): _conditioning(pipe, spec, call, r.prompt) for r in (strong, weak, base) if r.prompt
    }
    wrapped = _Wrapped(pipe, spec, call, others)

    def step(x: Tensor, i: int, n: int, levels: Grid, _as_called: Tensor) -> tuple[Tensor, Tensor]:
        if method == "autoguidance":
            return x, torch.lerp(wrapped.ask(weak, x, i), wrapped.ask(strong, x, i), scale)
        if method == "autoguidance with base":
            gap = wrapped.ask(strong, x, i) - wrapped.ask(weak, x, i)
            return x, wrapped.ask(base, x, i) + (scale - 1) * gap
        if not reflect(i - wrapped.first, n - wrapped.first):
            return x, wrapped.ask(base, x, i)
        for _ in range(times):
            down = levels.move(x, wrapped.ask(strong, x, i), at=i, to=i + 1)
            back = wrapped.ask(weak, down, i + 1)
            shift = int(reference)
            x = levels.move(down, back, at=i + 1 + shift, to=i + shift)
        return x, wrapped.ask(base, x, i)

    with wrapped.installed(step), torch.no_grad():
        return _latents(pipe, call)


def remix(
    pipe: Any,
    family: str,
    call: Mapping[str, Any],
    mix: Callable[[Tensor, Tensor, int, int], Tensor],
) -> Tensor:
    """The final latents of ``pipe(**call)`` with another formula in the place of its guidance.

    Args:
        pipe: as in `replay`.
        family: as in `replay`.
        call: as in `replay`.
        mix: (conditional prediction, unconditional one, step, number of steps) -> the prediction
            that is stepped with; without a learned variance.
    """
    wrapped = _Wrapped(pipe, FAMILIES[family], call, {})

    def step(x: Tensor, i: int, n: int, _levels: Grid, _as_called: Tensor) -> tuple[Tensor, Tensor]:
        c, u = wrapped.halves(wrapped.answers, x)
        return x, mix(c, u, i - wrapped.first, n - wrapped.first)

    with wrapped.installed(step), torch.no_grad():
        return _latents(pipe, call)


def _latents(pipe: Any, call: Mapping[str, Any]) -> Tensor:
    """What a call returns, whether it is called images or frames."""
    return torch.as_tensor(pipe(**call)[0])


class _Wrapped:
    """The pipeline, its denoiser's forward and its scheduler's step wrapped on the instances."""

    def __init__(
        self,
        pipe: Any,
        spec: Family,
        call: Mapping[str, Any],
        others: Mapping[int, list[dict[str, Any]]],
    ) -> None:
        self.pipe, self.spec, self.call, self.others = pipe, spec, call, others
        names = [spec.denoiser, *(spec.second or ())[:1]]
        self.denoisers = [getattr(pipe, name) for name in names]
        self.forwards = [denoiser.forward for denoiser in self.denoisers]
        self.signature = inspect.signature(self.forwards[0])
        self.captured: list[dict[str, Any]] = []
        self.answers: list[Tensor] = []
        self.controlled: dict[str, Any] = {}  # what the ControlNet was given at this step
        self.control = getattr(pipe, "controlnet", None) if spec.residuals else None
        self.speaking = 0  # which of the denoisers the pipeline has called at this step
        self.levels: Grid | None = None
        self.index = 0  # of the step among the scheduler's: image to image begins late
        self.first = 0

    @contextmanager
    def installed(self, step: Callable[..., tuple[Tensor, Tensor]]) -> Iterator[None]:
        scheduler = self.pipe.scheduler
        real_step = scheduler.step

        def capturing(which: int) -> Callable[..., Any]:
            def capture(*args: Any, **kwargs: Any) -> Any:
                self.captured.append(dict(self.signature.bind(*args, **kwargs).arguments))
                self.speaking = which
                out = self.forwards[which](*args, **kwargs)
                self.answers.append(self.stacked(out[0]))
                return out

            return capture

        signature = inspect.signature(real_step)

        def routed(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs)
            model_output, sample = given.arguments["model_output"], given.arguments["sample"]
            if self.levels is None:
                self.levels = grid(scheduler)
                same = scheduler.timesteps == given.arguments["timestep"]
                self.first = self.index = int(same.nonzero()[0])
            # recombining by hand must give what the pipeline made of the same outputs
            mine = self.combine(self.answers, self.call_guidance(), sample)
            torch.testing.assert_close(mine, model_output, rtol=1e-6, atol=1e-5)
            x, prediction = step(
                sample, self.index, len(scheduler.timesteps), self.levels, model_output
            )
            self.captured, self.answers = [], []
            self.index += 1
            if x is not sample and getattr(scheduler, "last_sample", None) is not None:
                scheduler.last_sample = None  # UniPC corrects a sample that it has not been handed
            given.arguments |= {"model_output": prediction, "sample": x}
            return real_step(*given.args, **given.kwargs)

        # pipelines probe the signature of `step` for eta and generator
        routed.__signature__ = signature  # type: ignore[attr-defined]
        for which, denoiser in enumerate(self.denoisers):
            denoiser.forward = capturing(which)
        if self.control is not None:
            self.control_forward = self.control.forward
            self.control.forward = self._control_captured
        scheduler.step = routed
        try:
            yield
        finally:
            for denoiser in self.denoisers:
                del denoiser.forward
            if self.control is not None:
                del self.control.forward
            del scheduler.step

    def _control_captured(self, *args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(self.control_forward).bind(*args, **kwargs)
        self.controlled = dict(bound.arguments)
        return self.control_forward(*args, **kwargs)

    def call_guidance(self) -> float:
        """The scale that the pipeline itself mixes with at this step."""
        if self.spec.live is not None:
            return float(getattr(self.pipe, self.spec.live))
        name = self.spec.scale
        if self.speaking and self.spec.second is not None:
            name = self.spec.second[1]
        return float(self.call.get(name, 1.0)) + self.spec.offset

    def stacked(self, output: Any) -> Tensor:
        found: Tensor = torch.stack(list(output)).squeeze(2) if self.spec.items else output
        signed: Tensor = self.spec.sign * found
        return signed

    def shown(self, x: Tensor, before: Any) -> Any:
        """X in the place of the latents in what the denoiser was given before."""
        if self.spec.items:
            return [item for _ in range(len(before) // len(x)) for item in x.unsqueeze(2).unbind()]
        copies = torch.cat([x] * (len(before) // len(x)))
        # A condition's channels (inpainting, image to video) or tokens (Kontext) follow those of
        # the latents.
        for axis in range(1, x.ndim):
            if more := before.shape[axis] - x.shape[axis]:
                tail = before.narrow(axis, x.shape[axis], more)
                copies = torch.cat([copies, tail], axis)
        return copies

    def residuals(self, x: Tensor) -> dict[str, Any]:
        """What the ControlNet says of x."""
        if self.control is None:
            return {}
        name = self.spec.sample
        given = {**self.controlled, name: self.shown(x, self.controlled[name])}
        return dict(zip(self.spec.residuals, self.control_forward(**given), strict=True))

    def ask(self, role: Role, x: Tensor, at: int) -> Tensor:
        """The guided prediction of a role for x at level `at`, told this step's timestep."""
        assert self.levels is not None
        shown = self.levels.network_input(x, at)
        guidance = self.call_guidance() if role.guidance is None else role.guidance
        controlled = self.residuals(shown)
        assert not (controlled and role.prompt)
        outputs = []
        with ExitStack() as stack:
            if role.lora is not None:
                stack.enter_context(_adapter(self.denoisers[self.speaking], *role.lora))
            own = self.forwards[self.speaking]
            forward = own if role.module is None else role.module.forward
            for k, kwargs in enumerate(self.captured):
                kwargs = {**kwargs, **controlled}
                kwargs[self.spec.sample] = self.shown(shown, kwargs[self.spec.sample])
                if role.prompt is not None:
                    kwargs |= {key: self.others[id(role)][k][key] for key in self.spec.conditioning}
                if self.spec.embedded_guidance and role.guidance is not None:
                    kwargs["guidance"] = torch.full_like(kwargs["guidance"], role.guidance)
                outputs.append(self.stacked(forward(**kwargs)[0]))
        return self.combine(outputs, guidance, x)

    def halves(self, outputs: list[Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        """Conditional and unconditional prediction of the latents x."""
        if self.spec.layout == "cond first, two calls":
            c, u = outputs
        elif self.spec.layout == "cond first, one call":
            c, u = outputs[0].chunk(2)
        else:
            u, c = outputs[0].chunk(3 if self.spec.third == "perturbed" else 2)[:2]
        return _cropped(c, x), _cropped(u, x)

    def unguided(self, outputs: list[Tensor], x: Tensor) -> bool:
        """The pipeline made no unconditional half: a callback switched its guidance off, say."""
        if self.spec.layout == "cond first, two calls":
            return len(outputs) == 1
        return self.spec.layout == "none" or (len(outputs[0]) == len(x) and not self.spec.doubled)

    def combine(self, outputs: list[Tensor], guidance: float, x: Tensor) -> Tensor:
        """Classifier-free guidance by hand."""
        if self.unguided(outputs, x):
            return _cropped(outputs[0], x)
        c, u = self.halves(outputs, x)
        mixed = u + guidance * (c - u)
        if self.spec.third == "perturbed":  # Ahn et al. 2024
            mixed += self.call["pag_scale"] * (c - outputs[0].chunk(3)[2])
        if self.spec.third == "skipped layers":
            mixed += self.call["skip_layer_guidance_scale"] * (c - outputs[1])
        mixed = self.rescaled(mixed, c)
        return torch.cat([mixed, mixed]) if self.spec.doubled else mixed

    def rescaled(self, mixed: Tensor, c: Tensor) -> Tensor:
        """What the pipeline does with the mix."""
        over = tuple(range(1, c.ndim))
        if self.spec.rescale == "norm of each token":
            sizes: Tensor = c.norm(dim=-1, keepdim=True) / mixed.norm(dim=-1, keepdim=True)
            return mixed * sizes
        if self.spec.rescale == "norm at most":
            if not (most := float(self.call.get("cfg_normalization", 0.0))):
                return mixed
            size = mixed.square().sum(over, keepdim=True).sqrt()
            limit: Tensor = most * c.square().sum(over, keepdim=True).sqrt() / size
            return mixed * limit.clamp(max=1.0)
        if phi := float(self.call.get("guidance_rescale", 0.0)):  # Lin et al. 2023, section 3.4
            like: Tensor = mixed * c.std(over, keepdim=True) / mixed.std(over, keepdim=True)
            mixed = phi * like + (1 - phi) * mixed
        return mixed


def _cropped(prediction: Tensor, x: Tensor) -> Tensor:
    """Without a learned variance (more channels), and without a condition's tokens."""
    for axis in range(1, x.ndim):
        prediction = prediction.narrow(axis, 0, x.shape[axis])
    return prediction


@contextmanager
def _adapter(denoiser: Any, name: str, weight: float) -> Iterator[None]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    before = {
        layer: layer.scaling[name]
        for layer in denoiser.modules()
        if isinstance(layer, BaseTunerLayer) and name in layer.scaling
    }
    denoiser.set_adapters(name, weight)
    try:
        yield
    finally:
        for layer, scaling in before.items():
            layer.scaling[name] = scaling


class _CapturedError(Exception):
    """Leaves the pipeline once its first step has said what it tells the denoiser."""


def _conditioning(
    pipe: Any, spec: Family, call: Mapping[str, Any], prompt: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The denoiser arguments of a call's first step with another prompt, one entry per branch."""
    denoiser, seen = getattr(pipe, spec.denoiser), []
    signature, forward = inspect.signature(denoiser.forward), denoiser.forward

    def capture(*args: Any, **kwargs: Any) -> Any:
        seen.append(dict(signature.bind(*args, **kwargs).arguments))
        return forward(*args, **kwargs)

    def stop(*_: Any, **__: Any) -> Any:
        raise _CapturedError

    stop.__signature__ = inspect.signature(pipe.scheduler.step)  # type: ignore[attr-defined]
    denoiser.forward, pipe.scheduler.step = capture, stop
    fresh = {"generator": torch.Generator().manual_seed(0)} if "generator" in call else {}
    try:
        with torch.no_grad():
            pipe(**{**call, **prompt, **fresh})
    except _CapturedError:
        return seen
    finally:
        del denoiser.forward, pipe.scheduler.step
    raise AssertionError("the pipeline never called scheduler.step")

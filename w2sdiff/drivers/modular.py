"""Modular Diffusers: the same conversation, around the public `loop_step` of a loop of blocks.

A modular pipeline has its denoising loop in a `LoopSequentialPipelineBlocks`, whose `loop_step`
runs one step's blocks: A (inputs, network, guider), `scheduler.step`, B (blending). So nothing has
to be woven. While a call lasts, `loop_step` is run once per request at the request's latents, and
the scheduler hands the prediction to the method. Where the method asks for more, `scheduler.step`
does not return: `Asked` leaves the blocks, and B is run once per step, after the real one. Each
request starts from the block state and the guiders (their momentum, say) as the step found them.

Classes are swapped as for the network, see `taps`; the loop's for the call, the scheduler's while
the loop runs.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from w2sdiff.drivers.families import Family, Frame
from w2sdiff.drivers.loops import why_not
from w2sdiff.drivers.taps import subclass
from w2sdiff.drivers.weave import SLOT as RUN_SLOT
from w2sdiff.drivers.weave import Woven
from w2sdiff.edits.prompt import Prompt
from w2sdiff.errors import UnsupportedError

if TYPE_CHECKING:
    from w2sdiff.drivers.run import Run
    from w2sdiff.edits.base import Edits

SLOT = "_w2sdiff_modular"


class Asked(BaseException):
    """The method has another request: the rest of the step's blocks waits.

    A BaseException, because diffusers (0.42) logs every Exception that leaves a block.
    """


def is_modular(pipe: Any) -> bool:
    """Whether it is a pipeline of blocks."""
    return any(cls.__name__ == "ModularPipeline" for cls in type(pipe).__mro__)


def looped_call(pipe: Any) -> tuple[type, Woven]:
    """The class whose `__call__` runs the blocks, and that call with its loops in our hands.

    Raises:
        UnsupportedError: no loop of blocks, or none that can be run by requests; says why.
    """
    name = type(pipe).__name__
    loops = _loops(pipe)
    if not loops:
        raise UnsupportedError(
            f"{name} has no denoising loop of blocks (LoopSequentialPipelineBlocks); "
            "attach to the pipeline that does the denoising."
        )
    reasons = [why_not(loop) for loop in loops]
    if all(reasons):
        raise UnsupportedError(f"{type(loops[0]).__name__} of {name}: {reasons[0]}; refused.")
    owner = next(cls for cls in type(pipe).__mro__ if "__call__" in cls.__dict__)
    call = owner.__dict__["__call__"]

    @functools.wraps(call)
    def function(self: Any, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as taps:
            for loop in _loops(self):
                taps.enter_context(_swapped(loop, _tapped_loop, self.__dict__[RUN_SLOT]))
            return call(self, *args, **kwargs)

    function.__signature__ = _signature(call, _taken(pipe))  # type: ignore[attr-defined]
    return owner, Woven(function, _state_names(pipe), timestep="t", scales_latents=False)


def family_of(pipe: Any) -> Family | None:
    """How its guider does guidance: in two calls, conditional first; None: in a way of its own."""
    guiders = _guiders(pipe)
    if not guiders:
        # An embedded scale (FLUX) is the network's input; a mix without a guider is unknown.
        config = getattr(getattr(pipe, "transformer", None), "config", None)
        embedded = getattr(config, "guidance_embeds", False)
        return Family("two", lambda *_: None) if embedded else None
    linear = all(type(guider).__name__ == "ClassifierFreeGuidance" for guider in guiders.values())
    return Family("two", _scale, _rescale) if linear else None


def check_edits(pipe: Any, roles: Mapping[str, Edits], family: Family | None) -> None:
    """Refuse what the pipeline's blocks would ignore or its guider mix in a way of its own."""
    name = type(pipe).__name__
    every = [edit for edits in roles.values() for edit in edits]
    guiders = _guiders(pipe)
    if guiders and family is None and any(edit.maps_halves for edit in every):
        kinds = ", ".join(sorted({type(guider).__name__ for guider in guiders.values()}))
        raise UnsupportedError(
            f"Edits of guidance need a guider that mixes two predictions linearly; {name} has "
            f"{kinds}. Use pipe.update_components(guider=ClassifierFreeGuidance(...)); all other "
            "edits work with it."
        )
    taken = _taken(pipe)
    for edit in every:
        wanted = _words(edit) if isinstance(edit, Prompt) else set()
        if not wanted <= taken:
            missing = ", ".join(sorted(wanted - taken))
            raise UnsupportedError(
                f"{edit!r} needs {missing}, which no block of {name} takes; "
                "attach to a pipeline that has its text encoder's blocks, or use another edit."
            )


# ---- the loop


@cache
def _tapped_loop(cls: Any) -> Any:
    def __call__(self: Any, components: Any, state: Any) -> Any:  # noqa: N807
        run: Run = self.__dict__[SLOT]
        reason = why_not(self)
        if reason is not None:
            raise UnsupportedError(f"{cls.__name__}: {reason}; refused.")
        if run.stats.steps > 0:
            raise UnsupportedError(f"{cls.__name__} is the second loop of one call; refused.")
        frame = self.get_block_state(state).as_dict()
        run.enter(frame["timesteps"], frame)
        scheduler = components.scheduler
        with _swapped(scheduler, _tapped_scheduler, run):
            return super(tapped, self).__call__(components, state)

    def loop_step(self: Any, components: Any, state: Any, i: int, t: Any, **more: Any) -> Any:
        run: Run = self.__dict__[SLOT]
        if getattr(state, "kv_caches", None) is not None and state.cache_enabled:
            # Qwen-Image 2.1, diffusers 0.42.
            raise UnsupportedError(
                f"{cls.__name__} keeps keys and values from one step to the next, which would be "
                "another role's; call the pipeline with use_kv_cache=False."
            )
        found = _Found(state, _guiders(components))
        run.begin(state.latents, t, {**found.variables, "i": i, "t": t})
        while run.asking:
            found.restore(latents=run.x, **run.inputs)
            try:
                result = super(tapped, self).loop_step(components, state, i=i, t=run.t, **more)
            except Asked:
                continue
            if run.asking:
                raise UnsupportedError(
                    f"{cls.__name__} ended a step without scheduler.step; refused."
                )
        vars(state).update(run.inputs)  # the next step sees the words of the call again
        return result

    tapped: Any = subclass(cls, SLOT, {"__call__": __call__, "loop_step": loop_step})
    return tapped


@cache
def _tapped_scheduler(cls: Any) -> Any:
    @functools.wraps(cls.step)  # blocks ask for its parameters
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        run: Run = self.__dict__[SLOT]
        if not run.asking:  # the real step, called by the run
            return super(tapped, self).step(*args, **kwargs)
        result = run.step_of(self)(*args, **kwargs)
        if run.asking:
            raise Asked
        return result

    own: dict[str, Any] = {"step": step}
    if hasattr(cls, "scale_model_input"):

        @functools.wraps(cls.scale_model_input)
        def scale_model_input(self: Any, *args: Any, **kwargs: Any) -> Any:
            plain: Any = super(tapped, self)
            run: Run = self.__dict__[SLOT]
            return (run.scale_of(plain) if run.asking else plain.scale_model_input)(*args, **kwargs)

        own["scale_model_input"] = scale_model_input
    tapped: Any = subclass(cls, SLOT, own)
    return tapped


class _Found:
    """Block state and guiders as a step finds them."""

    def __init__(self, state: Any, guiders: Mapping[str, Any]) -> None:
        self.variables: Frame = dict(vars(state))
        self._state = state
        self._guiders = [(guider, _copied(guider)) for guider in guiders.values()]

    def restore(self, **changes: Any) -> None:
        vars(self._state).clear()
        vars(self._state).update(self.variables, **changes)
        for guider, before in self._guiders:
            vars(guider).update(copy.deepcopy(before))


def _copied(guider: Any) -> dict[str, Any]:
    """What a guider remembers between steps; its configuration is not changed by them."""
    return {
        key: copy.deepcopy(value) for key, value in vars(guider).items() if key != "_internal_dict"
    }


@contextmanager
def _swapped(instance: Any, tap: Callable[[Any], Any], slot: Any) -> Iterator[None]:
    called: Any = type(instance)
    instance.__dict__[SLOT] = slot
    instance.__class__ = tap(called)
    try:
        yield
    finally:
        instance.__class__ = called
        del instance.__dict__[SLOT]


# ---- what a pipeline consists of


def _loops(pipe: Any) -> list[Any]:
    """The loops among its blocks, those of workflows that a call does not take included."""
    # `pipe.blocks` is a copy (diffusers 0.38 to 0.42), and what is called is not.
    return [block for block in _blocks(pipe._blocks) if hasattr(block, "loop_step")]


def _blocks(block: Any) -> Iterator[Any]:
    yield block
    for part in block.sub_blocks.values():
        yield from _blocks(part)


def _guiders(pipe: Any) -> dict[str, Any]:
    """Its guiders by name; Wan 2.2 has two."""
    parts = pipe.components.items()
    return {name: part for name, part in parts if hasattr(part, "prepare_inputs_from_block_state")}


def _state_names(pipe: Any) -> tuple[str, ...]:
    """Names that the state of its loops can have, the latents apart."""
    kinds = {parameter.kwargs_type for loop in _loops(pipe) for parameter in loop.inputs}
    made = {parameter.name for parameter in pipe._blocks.intermediate_outputs}
    return tuple(sorted((_taken(pipe) | kinds | made) - {None, "latents"}))


def _taken(pipe: Any) -> set[str]:
    """Arguments that a call takes; others it ignores with a warning."""
    named = {parameter.name or parameter.kwargs_type for parameter in pipe._blocks.inputs}
    return named - {None}


def _signature(call: Any, taken: set[str]) -> inspect.Signature:
    """That of the call, with what the blocks take by name: a prompt, for example."""
    signature = inspect.signature(call)
    *own, rest = signature.parameters.values()
    names = sorted(taken - set(signature.parameters))
    named = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in names
    ]
    return signature.replace(parameters=[*own, *named, rest])


def _words(prompt: Prompt) -> set[str]:
    names = set(prompt.embeddings or ())
    names |= {"prompt"} if prompt.text is not None else set()
    return names | ({"negative_prompt"} if prompt.negative is not None else set())


def _guider(pipe: Any, frame: Frame) -> Any:
    guider = pipe.guider
    if getattr(pipe, "transformer_2", None) is not None and hasattr(pipe, "guider_2"):
        # Wan 2.2's rule (diffusers 0.42).
        noisy = frame["t"] >= pipe.config.boundary_ratio * pipe.num_train_timesteps
        guider = guider if noisy else pipe.guider_2
    # The block says the same before it prepares its inputs, which is too late for us.
    guider.set_state(
        step=frame["i"], num_inference_steps=frame["num_inference_steps"], timestep=frame["t"]
    )
    return guider


def _scale(pipe: Any, frame: Frame) -> float | None:
    guider = _guider(pipe, frame)
    if guider.num_conditions < 2:
        return None
    # The original formulation is c + s (c - u).
    return float(guider.guidance_scale) + (1.0 if guider.use_original_formulation else 0.0)


def _rescale(pipe: Any, frame: Frame) -> float:
    # Qwen-Image gives the mix the norm of the conditional prediction, token by token; 2.1 does not.
    name = type(pipe).__name__
    by_norm = name.startswith("QwenImage") and not name.startswith("QwenImage21")
    return 1.0 if by_norm else float(_guider(pipe, frame).guidance_rescale)

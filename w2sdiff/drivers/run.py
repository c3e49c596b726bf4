"""`Run`: the conversation between a method and the woven loop of one pipeline.

The woven loop (see `weave`) calls, in this order: `enter` once, then per step `begin`, and per
request `x`, `t`, `inputs`, `scale_of`, the tapped network, `step_of`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any

import torch

from w2sdiff.drivers.caches import RoleCaches
from w2sdiff.drivers.families import Family, Frame
from w2sdiff.drivers.pag import processors_kept
from w2sdiff.drivers.prompts import Words
from w2sdiff.drivers.stats import RunStats
from w2sdiff.drivers.taps import Branches, Taps
from w2sdiff.drivers.turns import NETWORKS, SCHEDULERS
from w2sdiff.edits.base import Context, Edits
from w2sdiff.edits.undo import Undo
from w2sdiff.errors import InputError, UnsupportedError
from w2sdiff.levels import Levels
from w2sdiff.methods.base import Eval, Method, Step, Steps

if TYPE_CHECKING:
    from torch import nn

    from w2sdiff.drivers.weave import Woven


_calling = Lock()


class Run:
    """One `attach`; `stats` describes the last call of the pipeline.

    Attributes:
        stats: cost of the last call.
        method: the method that runs.
        columns: per-item columns of the prompt file for `Prompt("@name")`; may be set before every
            call.
    """

    def __init__(
        self,
        pipe: Any,
        method: Method,
        roles: Mapping[str, Edits],
        woven: Woven,
        family: Family | None,
        columns: Mapping[str, Sequence[str]],
        denoisers: Sequence[str],
    ) -> None:
        """Made by `attach`."""
        self.stats = RunStats()
        self.method = method
        self.columns = columns
        self.taps = Taps(self._network)
        self.context = Context(pipe=pipe, denoisers=denoisers, tap=self.taps.add)
        self._roles = dict(roles)
        self._needs_scale = any(len(edits.items) > 0 for edits in self._roles.values())
        self._family = family
        self._woven = woven
        self._words: Words | None = None
        self._branches: Branches | None = None
        self._caller: tuple[Undo, int] | None = None  # what ends the call, and its thread
        self._leave_role = Undo()
        self._bound: Mapping[str, Mapping[str, Any]] = {}
        self._unbound: Mapping[str, Any] = {}
        self._conversation: Steps | None = None
        self._levels: Levels | None = None

    # ---- around a pipeline call

    def call(self, pipe: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the woven `__call__`."""
        ended = Undo()
        try:
            self._begin_call(ended)
            for name in self.context.denoisers:
                self.taps.add(pipe.__dict__[name])
            with processors_kept(pipe, self.context.denoisers):
                assert self._words is not None
                self._words.encode(pipe, args, kwargs)
                output = self._woven.function(pipe, *args, **kwargs)
            ended()
        except BaseException as error:
            ended(error)
            raise
        finally:
            ended()  # see `attach`
        return output

    def _begin_call(self, ended: Undo) -> None:
        """Start afresh; `ended` is told what is to be done at the end, the last thing first."""
        self._take_call(ended)
        self._take_scheduler(ended)
        started = time.perf_counter()
        self.stats = RunStats(notes=self._notes())
        self._levels = None

        def count_seconds() -> None:
            self.stats.seconds = time.perf_counter() - started

        for step in (count_seconds, self.context.end_call, self._let_go, self.taps.remove):
            ended.add(step)
        ended.add(self._leave)
        self.context.begin_call(self.columns)
        self._words = Words.of(self._roles, self.context, self._woven)
        self._caches = RoleCaches()

    def _take_call(self, ended: Undo) -> None:
        """Refuse to be called twice at once."""
        this = (ended, get_ident())

        def release() -> None:
            if self._caller is this:
                self._caller = None

        ended.add(release)
        with _calling:
            if self._caller is not None:
                raise InputError(
                    "This pipeline is already in a call, of a callback or another thread; "
                    "let it end first, or call a second pipeline made of the same components."
                )
            self._caller = this

    def _take_scheduler(self, ended: Undo) -> None:
        """Wait until no other thread's pipeline steps with it: it counts the steps of one call."""
        scheduler = getattr(self.context.pipe, "scheduler", None)
        if scheduler is None:
            return
        if SCHEDULERS.is_mine(scheduler):
            raise InputError(
                f"This {type(scheduler).__name__} is in a call of another attached pipeline; let "
                "that end first, or give each pipeline a scheduler of its own: "
                "pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)."
            )
        ended.add(partial(SCHEDULERS.give_back, [scheduler]))
        SCHEDULERS.take([scheduler])

    def _let_go(self) -> None:
        """Keep no tensor of a call that is over."""
        self._conversation = self._branches = self._words = None
        self._caches = RoleCaches()
        self._levels = self.context.request = None
        self._frame: Frame = {}
        self._bound = self._unbound = {}
        self.x = self.t = self._called_t = None
        self.inputs = {}
        self.__dict__.pop("_step", None)

    def _notes(self) -> list[str]:
        strong, base = self._roles["strong"], self._roles["base"]
        weights = [[edit for edit in edits if edit.changes_weights] for edits in (strong, base)]
        has_both = hasattr(self.method, "strong") and hasattr(self.method, "base")
        if has_both and weights[0] != weights[1]:
            return [
                "strong and base differ in weights: "
                f"strong is {strong or 'as called'}, base {base or 'as called'}"
            ]
        return []

    # ---- called by the woven loop

    asking = False  # more requests in this step
    # "continue" or "break", when the loop body left the step before its end
    left: str | None = None
    x: Any = None  # the request's latents
    t: Any = None  # the timestep the network is told
    inputs: Mapping[str, Any] = {}  # loop variables under the request's role

    def enter(self, timesteps: Any, frame: Frame) -> None:
        """The loop is about to start."""
        assert self._words is not None
        self._words.loop_entered(frame)
        self._scheduler = self.context.pipe.scheduler
        self._timesteps = timesteps
        self._num_steps = len(timesteps)
        self._offset = _offset(timesteps, self._scheduler.timesteps)
        self._index = -1
        # A loop in a loop (FreeInit, video in sections) comes here with other timesteps each time.
        self._levels = None
        if self._woven.scales_latents and hasattr(self._scheduler, "is_scale_input_called"):
            raise UnsupportedError(
                f"{type(self.context.pipe).__name__} steps with the scaled input of its network, "
                f"which is not right with {type(self._scheduler).__name__}; "
                "use a scheduler that does not scale, e.g. DDIMScheduler."
            )

    def begin(self, x: torch.Tensor, t: Any, frame: Frame) -> None:
        """One step starts at latents x."""
        assert self._words is not None
        self._index += 1
        if self._index == 0:
            self.stats.start = x.detach().clone()  # a scheduler may write into it
        self._called_t = t
        self._frame = frame
        self._words.step_begins(frame)
        self._bind(frame)
        in_window = self.method.window.contains(self._index, self._num_steps)
        self._step = Step(x, self._offset + self._index, in_window, self.levels)
        self._conversation = self.method.steps(self._step)
        self._spoken: Counter[str] = Counter()
        self.asking, self.left = True, None
        self._ask(next(self._conversation))

    def leave(self, how: str) -> torch.Tensor:
        """The loop body met `continue` or `break` before its scheduler step (an interrupt, say).

        Returns:
            The latents the step began with.
        """
        assert self._words is not None
        self._leave()
        self._branches = None
        self.asking, self.left, self.t = False, how, self._called_t
        self.inputs = {**self._words.called, **self._unbound}
        return self._step.x

    def scale_of(self, scheduler: Any) -> Callable[..., Any]:
        """`scheduler.scale_model_input`, for the level the request's latents are at."""
        if self._at == self._step.this:
            return scheduler.scale_model_input  # type: ignore[no-any-return]
        # Karras-type schedulers scale by their current sigma; the weak model's x is one level
        # further.
        return lambda sample, *_, **__: self.levels().scale_model_input(sample, at=self._at)

    def step_of(self, scheduler: Any, *history: Any) -> Callable[..., Any]:
        """`scheduler.step`: hand the prediction to the method; make the real step at its end.

        `history`: what the step returns beside the latents, and was given (CogVideoX's DPM); it
        stays what it was until the real step.
        """

        def step(*args: Any, **kwargs: Any) -> Any:
            self._check_in_step(scheduler)
            prediction = kwargs["model_output"] if "model_output" in kwargs else args[0]
            assert self._conversation is not None
            try:
                request = self._conversation.send(prediction)
            except StopIteration as finished:
                return self._real_step(scheduler, args, kwargs, *finished.value)
            self._ask(request)
            return _Provisional((request.x, *history))

        return step

    def levels(self) -> Levels:
        """Noise levels of the run, from the scheduler's state at the first question."""
        if self._levels is None:
            self._levels = Levels.from_scheduler(self._scheduler)
        return self._levels

    # ---- inside

    def _ask(self, request: Eval) -> None:
        assert self._words is not None
        self._leave()
        edits = self._roles[request.role]
        self._spoken[request.role] += 1
        self._speaker = request.role, self._spoken[request.role]
        self.stats.requests += 1
        self.x, self._at = request.x, request.at
        self.t = self._told(request)
        bound = {**self._unbound, **self._bound[request.role]}
        self.inputs = {**self._words.inputs(request.role), **bound}
        if self._needs_scale or (self._family is not None and self._family.doubled):
            self._read_scale()
        self._enter(edits)
        self.context.request = None
        when = (self._index, self._num_steps, request.at, self.levels)
        self._branches = Branches(edits, self.context, self._family, request.x, when)

    def _enter(self, edits: Edits) -> None:
        """Put the edits of a role on, when no other thread uses what they change."""
        networks = [self.context.pipe.__dict__[name] for name in self.context.denoisers]
        networks += [module for edit in edits for module in edit.networks(self.context)]
        self._leave_role.add(partial(NETWORKS.give_back, networks))
        NETWORKS.take(networks)
        for edit in edits:
            self._leave_role.add(edit.enter(self.context))

    def _bind(self, frame: Frame) -> None:
        """Loop variables that edits of a role change, and what they are as called."""
        loop = {name: frame[name] for name in self._woven.inputs if name in frame}
        self._bound = {
            role: {
                name: value
                for edit in edits
                for name, value in edit.variables(loop, self.context).items()
            }
            for role, edits in self._roles.items()
        }
        changed = set().union(*self._bound.values())
        self._unbound = {name: loop[name] for name in changed}

    def _told(self, request: Eval) -> Any:
        if request.time is None or request.time == self._step.this:
            return self._called_t
        # The clean end has no timestep of its own.
        return self._timesteps[min(request.time - self._offset, self._num_steps - 1)]

    def _read_scale(self) -> None:
        if self._family is None:
            return
        # The scale of some depends on the timestep that the network is told (Wan 2.2), and whether
        # there is guidance on the words (FLUX: on there being negative ones).
        told = {**self.inputs, self._woven.timestep: self.t}
        pipe, frame = self.context.pipe, {**self._frame, **told}
        self.context.guidance_scale = self._family.scale(pipe, frame)
        self.context.rescales = self._family.rescale(pipe, frame) > 0

    def _network(
        self, forward: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any
    ) -> Any:
        """Every call of a tapped network comes here."""
        if self._branches is None:  # outside a request: not ours
            with NETWORKS.turn(module):
                return forward(*args, **kwargs)
        branches = self._branches
        before = branches.evaluations, branches.network_calls, branches.saved
        with self._caches.of(module, self._speaker):
            output = branches.call(forward, module, args, kwargs)
        self.stats.evaluations += branches.evaluations - before[0]
        self.stats.calls += branches.network_calls - before[1]
        self.stats.saved += branches.saved - before[2]
        return output

    def _check_in_step(self, scheduler: Any) -> None:
        if self._branches is None or self._branches.asked == 0:
            raise UnsupportedError(
                f"{type(self.context.pipe).__name__} stepped without calling "
                f"{' or '.join(self.context.denoisers)}; "
                "its network is reached in a way the driver does not see."
            )
        counted = getattr(scheduler, "_step_index", None)
        if counted is not None and counted != self._step.this:
            raise UnsupportedError(
                f"The scheduler is at step {counted}, "
                f"the pipeline's loop at {self._step.this}; refused."
            )

    def _real_step(
        self, scheduler: Any, args: Any, kwargs: Any, prediction: torch.Tensor, x: torch.Tensor
    ) -> Any:
        assert self._words is not None
        self._leave()
        self._branches = None
        self.asking, self.t = False, self._called_t
        # What follows the step, and the next step, see the variables of the call again, not those
        # of the last request.
        self.inputs = {**self._words.called, **self._unbound}
        if x is not self._step.x and getattr(scheduler, "last_sample", None) is not None:
            # UniPC's and SASolver's corrector (diffusers 0.42) rebuilds the sample from the last
            # one and would ignore ours.
            scheduler.last_sample = None
        if "model_output" in kwargs:
            kwargs = {**kwargs, "model_output": prediction}
        else:
            args = (prediction, *args[1:])
        # Some cast what they step with (modular Wan in bfloat16, diffusers 0.42).
        if "sample" in kwargs:
            kwargs = {**kwargs, "sample": x.to(kwargs["sample"].dtype)}
        else:
            args = (*args[:-1], x.to(args[-1].dtype))
        result = scheduler.step(*args, **kwargs)
        after = result[0] if isinstance(result, tuple) else result.prev_sample
        self.stats.record_step(self._step.x, x, after)
        return result

    def _leave(self) -> None:
        self._leave_role()

    def close(self) -> None:
        """The `attach` ends; if an interrupt has come into the end of a call, so does that."""
        undo = Undo()
        undo.add(self.context.end)
        if self._caller is not None and self._caller[1] == get_ident():
            undo.add(self._caller[0])
        undo()


class _Provisional(tuple):  # type: ignore[type-arg]
    """What `scheduler.step` seems to return between requests: the next latents, in both forms."""

    @property
    def prev_sample(self) -> Any:
        return self[0]


def _offset(loop: Any, all_timesteps: Any) -> int:
    """Index of the loop's first timestep among the scheduler's.

    The loop may run over a part (img2img starts late, `denoising_end` stops early). Matching the
    whole sequence rather than looking up one value is right for PNDM too, which lists a timestep
    twice.
    """
    loop = torch.as_tensor(loop).flatten().cpu()
    full = torch.as_tensor(all_timesteps).flatten().cpu()
    for start in range(len(full) - len(loop) + 1):
        if torch.equal(loop, full[start : start + len(loop)]):
            return start
    raise UnsupportedError(
        "The pipeline's loop does not run over its scheduler's timesteps; refused."
    )

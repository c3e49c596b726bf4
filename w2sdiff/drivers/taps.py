"""The denoiser tap: calls of a tapped network pass through the run; undone without a trace.

A tap swaps the *class* of the module instance for a subclass with another `__call__`. Patching
`.forward` instead loses accelerate's offload hook (diffusers rebuilds its hooks at the end of
`__call__`, and restoring a saved `forward` then removes the new one) and breaks `torch.compile`'s
wrapper; a class swap survives both. Subclasses are made once per class, because `module.compile()`
guards on the type and would compile again for every new one.

Shapes: a network call's batch is n B for n branches of B items; halves are [B, ...].
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import cache
from threading import RLock, get_ident
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch

from w2sdiff.drivers.caches import takes_both_branches
from w2sdiff.drivers.halves import Axes, count, half_of_call, stacked, tensor_of, with_tensor
from w2sdiff.drivers.pag import in_halves
from w2sdiff.drivers.turns import NETWORKS, wait_for_calls
from w2sdiff.edits.base import BOTH, COND, UNCOND, Context, Edit, Halves, Inputs, Request
from w2sdiff.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from torch import nn

    from w2sdiff.drivers.families import Family
    from w2sdiff.levels import Levels

SLOT = "_w2sdiff_tap"
_tapping = RLock()

When = tuple[int, int, int, Callable[[], "Levels"]]
"""Number of the step, how many there are, the level of x, and the levels: see `Request`."""


class Taps:
    """The modules of one `attach` that are tapped while the pipeline is in a call.

    Between two calls they are stock modules: whatever asks for their exact class then
    (`from_pipe` does), copies or saves them, finds what it knows.

    Several pipelines may tap one module at the same time, each from a thread of its own. A thread
    whose pipeline is not attached goes through the tap as well: it gets the stock network, when no
    role of another thread has changed it.
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        """`call(forward, module, args, kwargs)` answers for every tapped module."""
        self._call = call
        self._tapped: list[tuple[nn.Module, int]] = []  # with the thread

    def add(self, module: nn.Module) -> None:
        """Tap a module for this thread until `remove`; tapping it twice is once."""
        if any(module is known for known, _ in self._tapped):
            return
        thread = get_ident()
        with _tapping:
            calls: dict[int, Any] | None = module.__dict__.get(SLOT)
            if calls is not None and thread in calls:
                raise InputError(
                    f"This {type(module).__name__} is in a call of another attached pipeline; "
                    "let that end first, or give each pipeline a network of its own."
                )
            self._tapped.append((module, thread))
            if calls is not None:
                calls[thread] = self._call
                return
            module.__dict__[SLOT] = {thread: self._call}
            # object.__setattr__: torch.compile's wrapper forwards ordinary attributes to the module
            # inside.
            called: type = type(module)
            object.__setattr__(module, "__class__", _tapped(called))
        wait_for_calls(module)  # those that came before the tap know nothing of turns

    def remove(self) -> None:
        """Let go of every module; one that nobody else has tapped gets its class back."""
        while self._tapped:
            module, thread = self._tapped[-1]
            with _tapping:
                calls: dict[int, Any] = module.__dict__.get(SLOT, {})
                calls.pop(thread, None)
                if not calls:
                    tapped: Any = type(module)
                    called = getattr(tapped, "w2sdiff_untapped", tapped)
                    object.__setattr__(module, "__class__", called)
                    module.__dict__.pop(SLOT, None)
            self._tapped.pop()


@cache
def _tapped(cls: Any) -> Any:
    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        # Not by super(): another thread may give the module its class back at any moment.
        forward = MethodType(cls.__call__, self)
        call = self.__dict__.get(SLOT, {}).get(get_ident())
        if call is not None:
            return call(forward, self, args, kwargs)
        with NETWORKS.turn(self):
            return forward(*args, **kwargs)

    return subclass(cls, SLOT, {"__call__": __call__})


def subclass(cls: Any, slot: str, own: dict[str, Any]) -> Any:
    """`cls` with other methods, for instances whose class is swapped.

    It has the same name, so that whatever asks for it (saving, hooks, error messages) sees the
    class it knows; a copy of an instance is one of `cls`.
    """

    def __reduce_ex__(self: Any, protocol: Any) -> Any:  # noqa: N807
        return copied_as(cls, slot, super(made, self).__reduce_ex__(protocol))

    names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    ours = {"__reduce_ex__": __reduce_ex__, "w2sdiff_untapped": cls}
    made: Any = type(cls.__name__, (cls,), {**names, **ours, **own})
    return made


def copied_as(cls: type, slot: str, reduced: Any) -> Any:
    """What `copy.deepcopy` and `pickle` build from: an object as before its class was swapped.

    Args:
        cls: the class it had.
        slot: the attribute that we gave it.
        reduced: what Python says of it now: (function, arguments, state, ...).
    """
    make, arguments, state, *rest = reduced
    arguments = tuple(cls if _swapped(value, cls) else value for value in arguments)
    make = cls if _swapped(make, cls) else make  # torch.compile's wrapper is its own function
    kept = {name: value for name, value in state.items() if name != slot}
    return (make, arguments, kept, *rest)


def _swapped(value: Any, cls: type) -> bool:
    return isinstance(value, type) and issubclass(value, cls)


class Branches:
    """One request's calls of the network: which halves run, and what the pipeline gets back.

    One object per request, under its role's edits. The pipeline's own guidance mix then works on
    what it returns.
    """

    def __init__(
        self,
        edits: Iterable[Edit],
        context: Context,
        family: Family | None,
        x: torch.Tensor,
        when: When,
    ) -> None:
        """`x` [B, ...] are the request's latents; `family` None: its guidance is not known."""
        self._edits = tuple(edits)
        self._context = context
        layout = None if family is None else family.layout
        self._perturbed = layout == "ucp"
        self._layout = "uc" if layout == "ucp" else layout
        self._axes: Axes = {} if family is None else family.axes
        self._x = x
        guided = context.guidance_scale is not None
        # DiT's latents hold both branches, through `step` and all.
        self._batch = len(x) // 2 if family is not None and family.doubled and guided else len(x)
        self._when = when
        self._asked_with: dict[str, Inputs] = {}  # two-call layout: what each branch was given
        self._first: Any = None  # two-call layout: the conditional half, once it has been seen
        self._kept = True  # one-call layout: the pipeline was given the conditional half as it is
        self.asked = 0  # calls the pipeline made
        self.evaluations = 0  # branches computed
        self.saved = 0  # branches asked for and not computed
        self.network_calls = 0  # calls that reached the network

    def call(
        self,
        forward: Callable[..., Any],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Answer one call of the network by the pipeline."""
        self.asked += 1
        has_scale = torch.is_tensor(kwargs.get("guidance"))
        self._context.embedded = self._context.guidance_scale is None and has_scale
        # The first edit is the one next to the network: a Checkpoint sees what it is really given.
        for edit in reversed(self._edits):
            kwargs = edit.inputs(kwargs, self._context)
        sample = args[0] if args else kwargs[_first_parameter(module)]
        branches = count(sample) / self._batch
        run = _Network(self, forward, args, kwargs, sample, self._axes)
        mapping = [edit for edit in self._edits if edit.needs(self._context) is not None]
        if not mapping or self._layout is None or self._context.guidance_scale is None:
            return run.all(branches)
        needs = self._needs()
        if self._layout == "two":
            self._asked_with["c" if self.asked == 1 else "u"] = Inputs(sample, kwargs)
            self._context.request = Request(*self._when, self._asked_with.get)
            return self._two_calls(run, sample, needs, mapping)
        if self._perturbed and branches == 3:
            alone = needs == COND and not takes_both_branches(module)
            return self._perturbed_call(run, needs, mapping, alone=module if alone else None)
        # An extra call of another size (SD3's skip-layer guidance) is not the guided pair.
        if branches != 2:
            if not self._kept:
                raise _measured_from_another("skip-layer guidance", "without skip_guidance_layers")
            return run.all(branches)
        self._context.request = Request(*self._when, run.branch(self._layout))
        return self._one_call(run, needs, mapping, whole=takes_both_branches(module))

    def _needs(self) -> Halves:
        needs = BOTH
        for edit in self._edits:
            needs = edit.needs(self._context) or needs
        return needs

    def _map(self, mapping: list[Edit], c: Any, u: Any) -> tuple[Any, Any]:
        for edit in mapping:
            c, u = edit.halves(c, u, self._context)
        return c, u

    def _one_call(self, run: _Network, needs: Halves, mapping: list[Edit], *, whole: bool) -> Any:
        """One call with the batch [u, c] or [c, u]; `whole`: the network wants all of it."""
        order = (1, 0) if self._layout == "uc" else (0, 1)  # position of c, of u
        if needs == BOTH or whole:
            output = run.all(2)
            parts = tensor_of(output).chunk(2)
            c = parts[order[0]] if "c" in needs else None
            u = parts[order[1]] if "u" in needs else None
        else:
            output = run.half(order[0] if needs == COND else order[1])
            self.saved += 1
            half = tensor_of(output)
            c, u = (half, None) if needs == COND else (None, half)
        computed = c
        c, u = self._map(mapping, c, u)
        self._kept = c is computed
        return with_tensor(output, torch.cat([u, c] if self._layout == "uc" else [c, u]))

    def _perturbed_call(
        self, run: _Network, needs: Halves, mapping: list[Edit], *, alone: nn.Module | None
    ) -> Any:
        """One call with the batch [u, c, p] of perturbed-attention guidance: only u is rewritten.

        The pipeline adds a multiple of c - p, so c has to stay. `alone`: the network, where c and p
        are all that is needed of it.
        """
        self._context.request = Request(*self._when, run.branch("ucp"))
        if alone is None:
            output = run.all(3)
            u, c, p = tensor_of(output).chunk(3)
        else:
            with in_halves(alone, self._context):
                output = run.half(1, parts=3, taken=2)
            self.saved += 1
            c, p = tensor_of(output).chunk(2)
            u = None
        kept, u = self._map(mapping, c, u if "u" in needs else None)
        if kept is not c:
            raise _measured_from_another("perturbed-attention guidance", "with pag_scale=0")
        return with_tensor(output, torch.cat([u, c, p]))

    def _two_calls(self, run: _Network, sample: Any, needs: Halves, mapping: list[Edit]) -> Any:
        """Two calls, conditional first; an extra third one is left alone."""
        if self.asked > 2:
            return run.all(1)
        s = self._context.guidance_scale
        assert s is not None
        if self.asked == 1:
            if needs == UNCOND and run.returns_tuple:
                # Nothing to compute: with c' = 0 the mix is u' (1 - s), which the second call makes
                # equal to u.
                # What the pipeline keeps of a prediction has the latents' shape; the sample may
                # have more channels (Wan i2v) or tokens (FLUX Kontext).
                given = stacked(sample)
                like = self._x if given is sample else given
                nothing = torch.zeros_like(like, dtype=given.dtype, device=given.device)
                self._first = (None, None)
                self.saved += 1
                return with_tensor((sample,), nothing)
            output = run.all(1)
            c = tensor_of(output)
            if needs == COND:
                self._first = self._map(mapping, c, None)
                return with_tensor(output, self._first[0])
            self._first = (c, None)
            return output
        c, u = self._first
        if needs == COND and run.returns_tuple:
            self.saved += 1
            return with_tensor((sample,), u)
        output = run.all(1)
        other = tensor_of(output)
        if needs == COND:
            return with_tensor(output, u)
        wanted = self._map(mapping, c if needs == BOTH else None, other)
        if wanted[0] is c and c is not None:
            return with_tensor(output, wanted[1])
        if s == 1:
            raise UnsupportedError(
                "The pipeline mixes at guidance scale 1 at this step, where its unconditional half "
                "does not count, so that no other scale can be had; give it another one "
                "(Wan 2.2: guidance_scale_2) or leave the step out of the window."
            )
        # The first call's answer is given already, c or nothing: choose u' so that u' + s (c - u')
        # is the mix of the wanted pair.
        mix = wanted[1] + s * (wanted[0] - wanted[1])
        return with_tensor(output, (mix if c is None else mix - s * c) / (1 - s))


def _measured_from_another(guidance: str, call: str) -> UnsupportedError:
    return UnsupportedError(
        "An edit gives the pipeline another conditional prediction, from which "
        f"{guidance} measures; call the pipeline {call}."
    )


class _Network:
    """The network's own call with its arguments, for the whole batch or one branch of it."""

    def __init__(
        self,
        branches: Branches,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        sample: Any,
        axes: Axes,
    ) -> None:
        self._branches, self._forward = branches, forward
        self._args, self._kwargs, self._sample, self._axes = args, kwargs, sample, axes

    @property
    def returns_tuple(self) -> bool:
        return self._kwargs.get("return_dict", True) is False

    def all(self, branches: float) -> Any:
        self._branches.network_calls += 1
        self._branches.evaluations += int(branches) if branches >= 1 else 1
        return self._forward(*self._args, **self._kwargs)

    def branch(self, layout: str) -> Callable[[str], Inputs]:
        """What a branch of a call with both of them, or all three, was given."""

        def inputs(name: str) -> Inputs:
            index, parts = layout.index(name), len(layout)
            _, kwargs = half_of_call((), self._kwargs, index, self._sample, self._axes, parts=parts)
            return Inputs(stacked(self._sample).chunk(parts)[index], kwargs)

        return inputs

    def half(self, index: int, *, parts: int = 2, taken: int = 1) -> Any:
        self._branches.network_calls += 1
        self._branches.evaluations += taken
        given = self._args, self._kwargs
        args, kwargs = half_of_call(
            *given, index, self._sample, self._axes, parts=parts, taken=taken
        )
        return self._forward(*args, **kwargs)


@cache
def _first_parameter_of(cls: Any) -> str:
    return next(name for name in inspect.signature(cls.forward).parameters if name != "self")


def _first_parameter(module: nn.Module) -> str:
    cls: type = type(getattr(module, "_orig_mod", module))
    return _first_parameter_of(cls)

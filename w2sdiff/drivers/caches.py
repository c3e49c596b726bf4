"""What diffusers' cache hooks remember (FirstBlockCache, FasterCache, ...): each role its own.

A cache hook answers from what the network did at the last step. Strong, weak and base visit
different latents with different networks, and in turn: with one memory for all of them each would
be answered with another's residuals. Here each has its own, and so has every further evaluation of
one role within a step (`times=2`), so that a hook that counts its calls counts steps.

The memories are made at the start of a call and let go at its end; what the user's hooks held
before is what they hold afterwards. A hook that looks its step up in a table (MagCache's ratios)
counts from the first step of the window.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

# (owner's `__dict__`, key, what makes an empty memory)
Slot = tuple[dict[str, Any], str, Callable[[], Any]]


class RoleCaches:
    """The memories of one call of the pipeline, by network and by who speaks."""

    def __init__(self) -> None:
        """Nothing is remembered yet."""
        self._slots: dict[nn.Module, list[Slot]] = {}
        self._memories: dict[tuple[nn.Module, Hashable], list[Any]] = {}

    @contextmanager
    def of(self, module: nn.Module, speaker: Hashable) -> Iterator[None]:
        """Let the hooks of `module` remember for `speaker` meanwhile."""
        if module not in self._slots:
            self._slots[module] = _slots(module)
        slots = self._slots[module]
        if not slots:
            yield
            return
        key = (module, speaker)
        if key not in self._memories:
            self._memories[key] = [make() for _, _, make in slots]
        memories = self._memories[key]
        found = [owner[name] for owner, name, _ in slots]
        for (owner, name, _), memory in zip(slots, memories, strict=True):
            owner[name] = memory
        try:
            yield
        finally:
            # A hook may have bound a new memory rather than written into the one it had.
            self._memories[key] = [owner[name] for owner, name, _ in slots]
            for (owner, name, _), memory in zip(slots, found, strict=True):
                owner[name] = memory


def _slots(module: nn.Module) -> list[Slot]:
    """Where the cache hooks of a network remember: two ways in diffusers 0.38 to 0.42.

    A `StateManager`, which several hooks may share, holds one memory per name of
    `cache_context(name)`, or the hook holds its only one in `state`.
    """
    from diffusers.hooks.hooks import StateManager

    slots: dict[int, Slot] = {}
    for part in module.modules():
        registry = part.__dict__.get("_diffusers_hook")
        for hook in registry.hooks.values() if registry is not None else ():
            if not hook._is_stateful:
                continue
            for name, value in vars(hook).items():
                if isinstance(value, StateManager):
                    slots[id(value)] = (vars(value), "_state_cache", dict)
                elif name == "state":
                    slots[id(hook)] = (vars(hook), name, _empty_like(value))
    return list(slots.values())


def _empty_like(state: Any) -> Callable[[], Any]:
    def make() -> Any:
        other = copy.copy(state)
        other.reset()
        return other

    return make


def takes_both_branches(module: nn.Module) -> bool:
    """Whether a hook wants every call to hold both branches of guidance.

    FasterCache guesses the unconditional half from the conditional one by itself, and takes the
    first half of any batch for the unconditional one.
    """
    registry = getattr(module, "_diffusers_hook", None)
    hooks = registry.hooks.values() if registry is not None else ()
    return any(getattr(hook, "is_guidance_distilled", None) is False for hook in hooks)

"""What the network wears while a method takes its real step."""

from __future__ import annotations

from w2sdiff.edits.base import Edits
from w2sdiff.edits.guidance import Guidance
from w2sdiff.methods.autoguidance import AutoGuidance
from w2sdiff.methods.base import Method


def real_role(method: Method) -> Edits:
    """What the network wears while the real step is taken: base; without one, strong unguided.

    In the two-model form of `AutoGuidance` the guidance scale of strong is half of a pair, not a
    scale to draw with.

    Example:
        >>> from w2sdiff import Lora
        >>> real_role(AutoGuidance(strong=Guidance(1.0) | Lora("dpo", 0.8), weak=Guidance(1.0)))
        Lora(name='dpo', scale=0.8, sha256=None)
    """
    roles = method.roles
    if isinstance(method, AutoGuidance) and roles["base"] is None:
        return unguided(roles["strong"])
    return roles["base"] or Edits()


def unguided(edits: Edits | None) -> Edits:
    """The edits of a role without its guidance scale."""
    return Edits(tuple(edit for edit in edits or () if not isinstance(edit, Guidance)))

"""Which loops of blocks can be run by requests, and why the others are refused.

A modular pipeline's blocks are read, not rewritten: what would go wrong silently if A ran several
times per step is looked for in their source. See `modular` for the loop itself.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

from w2sdiff.drivers.repeatable import RANDOM


def why_not(loop: Any) -> str | None:
    """Why this loop of blocks cannot be run by requests; None if it can."""
    try:
        told = _told(loop)
        calls = [call for block in loop.sub_blocks.values() for call in _calls(block.__call__)]
    except (OSError, TypeError, SyntaxError):
        return "the source of its blocks is not available to be checked"
    if not {"i", "t"} <= told:
        return f"its loop_step is told {sorted(told)}, not a step and its timestep (i, t)"
    steps = [call for call in calls if _name(call).endswith("scheduler.step")]
    if not steps:
        return "none of its blocks calls scheduler.step"
    if len(steps) > 1:
        return "several schedulers step in it"
    if not _sample(steps[0]).removesuffix(".float()").endswith("state.latents"):
        return f"what scheduler.step receives is a part or another form ({_sample(steps[0])})"
    names = [_name(call) for call in calls]
    drawn = [name for name in names if name.rpartition(".")[2] in RANDOM]
    if drawn:
        return f"it draws random numbers inside a step ({drawn[0]})"
    if any("unconditional_transformer" in name for name in names):  # Ideogram 4, diffusers 0.42
        return "its unconditional half is a network of its own"
    return None


def _told(loop: Any) -> set[str]:
    """Names of what the loop tells its `loop_step`."""
    cls: Any = getattr(loop, "w2sdiff_untapped", type(loop))
    calls = [call for call in _calls(cls.__call__) if _name(call) == "self.loop_step"]
    return {keyword.arg for call in calls for keyword in call.keywords if keyword.arg is not None}


def _calls(function: Callable[..., Any]) -> list[ast.Call]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def _name(call: ast.Call) -> str:
    return ast.unparse(call.func)


def _sample(step: ast.Call) -> str:
    keywords = {keyword.arg: keyword.value for keyword in step.keywords}
    sample = keywords.get("sample", step.args[-1] if step.args else None)
    return "nothing" if sample is None else ast.unparse(sample)

"""Matched arms: for each method, what its evaluations and its strength buy without it.

A method that spends more evaluations than plain sampling, or that guides more strongly, is better
than plain sampling at the same number of steps for reasons that have nothing to do with the
method. So every arm is given rivals that spend as much and guide as strongly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from w2sdiff.bench.plan.experiment import Arm
from w2sdiff.bench.plan.inwords import described
from w2sdiff.bench.results import Match
from w2sdiff.edits import Edits, Guidance
from w2sdiff.generate import Recipe, Settings, cfg_scale
from w2sdiff.methods import W2SD, AutoGuidance, Method, Plain, Window, real_role, unguided

__all__ = ["described", "rivals_of"]


def rivals_of(
    arm: Arm,
    *,
    strength: float | None = None,
    select: str | None = None,
    on_note: Callable[[str], None] = lambda _note: None,
) -> list[Arm]:
    """The arms to compare an arm with, each of as many evaluations as the steps allow.

    * plain sampling, with more steps;
    * plain guidance at the measured effective scale (GA-Eval, arXiv 2602.22570);
    * what the arm is to first order: `W2SD` is base + times (strong - weak), which is
      `AutoGuidance` at scale 1 + times, and for a pair of guidance scales plain guidance at base +
      times (strong - weak);
    * the best of n plain pictures.

    A rival acts in the arm's window. No rival is made twice. Plain arms and rivals have none; the
    best of several plain pictures has one, which spends as much on a single picture.

    Args:
        arm: an arm that was asked for.
        strength: its effective guidance scale, `Strength.scale`; None where it was not measured.
        select: the scorer, in text, that best-of-n chooses by; None: no best-of-n.
        on_note: told in words which rival was left out, and why.

    Returns:
        Between one and four arms for a method; an empty list for a plain arm or a rival.

    Example:
        >>> from w2sdiff import ZigZag
        >>> from w2sdiff.generate import Settings, find_model
        >>> settings = Settings(steps=20, guidance=3.0, device="cpu", dtype="float32")
        >>> arm = Arm("zigzag", ZigZag(), find_model("shapes-unet"), settings)
        >>> for rival in rivals_of(arm, strength=6.5, select="sharpness"):
        ...     print(rival.name, rival.evaluations, "of", arm.evaluations)
        zigzag: plain, 48 steps 96 of 97
        zigzag: plain, guidance 6.5, 48 steps 96 of 97
        zigzag: plain, guidance 6, 48 steps 96 of 97
        zigzag: best of 2, 24 steps 96 of 97
    """
    if arm.rival_of is not None or (isinstance(arm.method, Plain) and arm.candidates == 1):
        return []
    found: list[Arm] = []
    for rival in filter(None, _candidates(arm, strength, select, on_note)):
        if all(_what(rival) != _what(other) for other in (arm, *found)):
            found.append(rival)
    return found


# ---- the four of them


def _candidates(
    arm: Arm, strength: float | None, select: str | None, on_note: Callable[[str], None]
) -> Iterator[Arm | None]:
    own = _scale(arm, real_role(arm.method))
    plain = _plain(arm, own)
    yield _affordable(arm, "evaluations", "plain", *plain, on_note)
    if own is not None and strength is not None:
        yield _at_scale(arm, "strength", _inside(arm, own, round(strength, 3)), on_note)
    yield _first_order(arm, on_note)
    if not isinstance(arm.method, Plain):
        yield _best_of_n(arm, *plain, select, on_note)


def _first_order(arm: Arm, on_note: Callable[[str], None]) -> Arm | None:
    method = arm.method
    if not isinstance(method, W2SD):
        return None
    strong, weak, base = ((role or Edits()) for role in method.roles.values())
    scales = [_scale(arm, role) for role in (strong, weak, base)]
    if scales[0] is not None and unguided(strong) == unguided(weak) == unguided(base):
        gs, gw, gb = (float(scale) for scale in scales if scale is not None)
        return _at_scale(arm, "first order", round(gb + method.times * (gs - gw), 3), on_note)
    if _same(arm, strong, weak):
        on_note(f"{arm.name}: its pair does not differ, so that no first-order rival was made")
        return None
    guided = AutoGuidance(
        strong=method.strong,
        weak=method.weak,
        base=None if _same(arm, strong, base) else base,
        scale=1.0 + method.times,
        window=method.window,
    )
    label = f"autoguidance {guided.scale:g}"
    return _affordable(arm, "first order", label, guided, arm.settings, on_note)


def _at_scale(arm: Arm, match: Match, scale: float, on_note: Callable[[str], None]) -> Arm | None:
    """Plain guidance at `scale` within the arm's window."""
    label = f"plain, guidance {scale:g}"
    steps = arm.recipe.steps
    inside = arm.method.reach.count(steps)
    if inside == 0:
        return None
    if inside >= steps - 1:
        return _affordable(arm, match, label, *_plain(arm, scale), on_note)
    base = real_role(arm.method)
    own = _scale(arm, base)
    if not own:
        on_note(f"{arm.name}: no rival guides from scale 0 within a window, so that none was made")
        return None
    # u + k (s-mix - u) is the mix at scale k s: one evaluation more a step, in the window alone.
    weak = unguided(base) | Guidance(0.0)
    method = AutoGuidance(base, weak, scale=scale / own, window=arm.method.reach)
    return _affordable(arm, match, f"{label} in the window", method, arm.settings, on_note)


def _best_of_n(
    arm: Arm,
    method: Method,
    settings: Settings,
    select: str | None,
    on_note: Callable[[str], None],
) -> Arm | None:
    if select is None:
        on_note(f"{arm.name}: no scorer to choose by, so that no best-of-n rival was made")
        return None
    # One step fewer may pay for one picture more: a window that leaves out the last step would
    # otherwise make the second picture unaffordable by a single evaluation.
    fewer = dataclasses.replace(settings, steps=max(1, settings.steps - 1))
    n = arm.evaluations // Recipe(arm.model, fewer, method).evaluations
    if n < 2:
        on_note(
            f"{arm.name}: its {arm.evaluations} evaluations do not pay for two plain pictures, "
            "so that no best-of-n rival was made"
        )
        return None
    label = f"best of {n}"
    return _affordable(arm, "best of n", label, method, settings, on_note, n, select)


# ---- equal evaluations


def _affordable(
    arm: Arm,
    match: Match,
    label: str,
    method: Method,
    settings: Settings,
    on_note: Callable[[str], None],
    candidates: int = 1,
    select: str | None = None,
) -> Arm | None:
    """The rival with the most steps that cost no more evaluations than the arm."""
    best: Arm | None = None
    for steps in range(1, _most_steps(arm)):
        rival = Arm(
            name=arm.name,
            method=_with_window_of(method, settings.steps, steps),
            model=arm.model,
            settings=dataclasses.replace(settings, steps=steps),
            rival_of=arm.name,
            match=match,
            candidates=candidates,
            select=select,
        )
        if rival.evaluations > arm.evaluations:
            break
        if best is None or rival.evaluations > best.evaluations:
            best = rival
    if best is None or best.evaluations <= arm.evaluations - _one_step(best):
        on_note(f"{arm.name}: no number of steps makes {label!r} as dear as it; left out")
        return None
    return dataclasses.replace(best, name=f"{arm.name}: {label}, {best.settings.steps} steps")


def _most_steps(arm: Arm) -> int:
    """A number of steps that costs more than the arm: every step that is made costs at least 1."""
    return int((arm.evaluations + 2) / (arm.settings.image_strength or 1.0)) + 2


def _one_step(arm: Arm) -> int:
    """The evaluations of one more step of all its candidates, at most."""
    scale = cfg_scale(arm.model, arm.settings)
    each = max(arm.method.evaluations(in_window, scale) for in_window in (True, False))
    return arm.candidates * each


def _with_window_of(method: Method, before: int, steps: int) -> Method:
    """The same part of a run of another number of steps; fractions say it themselves."""
    window = method.window
    if window.steps is None or steps == before:
        return method
    chosen = tuple(i for i in range(steps) if i * before // steps in window.steps)
    return dataclasses.replace(method, window=Window(steps=chosen))  # type: ignore[type-var]


# ---- guidance scales


def _scale(arm: Arm, role: Edits) -> float | None:
    """The guidance scale a role has in the end; None where the pipeline does no guidance."""
    called = cfg_scale(arm.model, arm.settings)
    if called <= 1:
        return None
    own = [edit.scale for edit in role if isinstance(edit, Guidance)]
    return own[0] if own else called


def _same(arm: Arm, one: Edits, other: Edits) -> bool:
    """Whether two roles are one network."""
    if _scale(arm, one) is None:
        return one == other
    return (unguided(one), _scale(arm, one)) == (unguided(other), _scale(arm, other))


def _plain(arm: Arm, scale: float | None) -> tuple[Plain, Settings]:
    """Plain sampling with the network of the arm's real step, at a guidance scale."""
    base = real_role(arm.method)
    if scale is None:
        return Plain(base if base.items else None), arm.settings
    rest = unguided(base)
    if scale > 1:
        name = "true_cfg" if "true_cfg_scale" in arm.model.parameters else "guidance"
        changed: dict[str, Any] = {name: scale}
        return Plain(rest if rest.items else None), dataclasses.replace(arm.settings, **changed)
    # Called with a scale of 1 or below, a pipeline drops its unconditional half altogether.
    return Plain(rest | Guidance(scale)), arm.settings


def _inside(arm: Arm, own: float, mean: float) -> float:
    """The scale inside the window that gives a mean over all steps; outside it is the arm's own."""
    steps = arm.recipe.steps
    inside = arm.method.reach.count(steps)
    if inside == 0 or inside >= steps - 1:
        return mean
    return round(own + (mean - own) * steps / inside, 3)


def _what(arm: Arm) -> tuple[Any, ...]:
    return arm.method, arm.settings, arm.candidates

"""`drive`: run a method on any callable, for exact toys and models outside diffusers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from w2sdiff.errors import InputError
from w2sdiff.methods.base import Method, Step

if TYPE_CHECKING:
    import torch

    from w2sdiff.levels import Levels

    Model = Callable[[torch.Tensor, int], torch.Tensor]


def drive(
    method: Method,
    model: Model | Mapping[str, Model],
    x: torch.Tensor,
    levels: Levels,
    *,
    callback: Callable[[int, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Sample with first-order steps from level 0 to the clean end.

    Args:
        method: its roles pick the model; their edits are not used, for there is no pipeline to
            edit.
        model: `model(x, i) -> prediction`, or one per role ("strong", "weak", "base"; base falls
            back to strong). x is alpha x0 + sigma noise, as a network sees it, also for Karras-type
            levels. `i` is the step whose timestep a network would be told: for W2SD's weak model
            the step's own, although its x is one level further (`weak_time="next"` tells it the
            level x is at).
        x: [B, ...] latents at level 0.
        levels: noise levels of the run.
        callback: called with (step, x after the step).

    Returns:
        [B, ...] latents at the last level.

    Raises:
        InputError: a role the method asks for has no model.

    Example:
        >>> import torch
        >>> from diffusers import DDIMScheduler
        >>> from w2sdiff import Plain
        >>> from w2sdiff.levels import Levels
        >>> scheduler = DDIMScheduler()
        >>> scheduler.set_timesteps(4)
        >>> levels = Levels.from_scheduler(scheduler)
        >>> drive(Plain(), lambda x, i: 0 * x, torch.ones(1, 1), levels).shape
        torch.Size([1, 1])
    """
    num_steps = len(levels)
    for i in range(num_steps):
        step = Step(x, i, method.window.contains(i, num_steps), lambda: levels)
        conversation = method.steps(step)
        request = next(conversation)
        while True:
            told = i if request.time is None else min(request.time, num_steps - 1)
            seen = levels.scale_model_input(request.x, at=request.at)
            prediction = _model_of(model, request.role)(seen, told)
            try:
                request = conversation.send(prediction)
            except StopIteration as finished:
                prediction, x = finished.value
                break
        x = levels.move(x, prediction, at=i, to=i + 1)
        if callback is not None:
            callback(i, x)
    return x


def _model_of(model: Model | Mapping[str, Model], role: str) -> Model:
    if not isinstance(model, Mapping):
        return model
    found = model.get(role) or (model.get("strong") if role == "base" else None)
    if found is None:
        given = ", ".join(model)
        raise InputError(
            f"The method asks for the role {role!r}, but models are given for {given}."
        )
    return found

"""How large a compact noise model may be, and what it must know of its data."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from w2sdiff.core2.compact import CompactConfig, CompactNoiseModel, flops_of
from w2sdiff.core2.data import Collected
from w2sdiff.errors import InputError

if TYPE_CHECKING:
    from w2sdiff.core2.training import Training

__all__ = ["calibrated", "sized"]

WIDEST = 512
SAMPLE = 4_000  # steps that are looked at


def sized(data: Collected, cost_ratio: float, training: Training) -> CompactConfig:
    """The widest model whose operations stay within a share of one evaluation of the host.

    Args:
        data: what it will be trained on; says what an evaluation costs.
        cost_ratio: the share.
        training: a width there is taken as it is; and the depth.

    Raises:
        InputError: even the smallest costs more, or the data does not say what an evaluation costs.
    """
    batch = next(data.read(1))
    text = batch.given.text
    host = data.host
    assert host.channels is not None
    options: dict[str, Any] = {
        "channels": host.channels,
        "prediction": host.prediction,
        "text_width": None if text is None else text.shape[-1],
        "depth": training.depth,
        "patch": training.patch or _patch(host.architecture, batch.c),
    }
    if training.width is not None:
        return CompactConfig(**options, width=training.width)
    if host.evaluation_flops is None:
        raise InputError(
            "the data does not say what an evaluation of the host costs; give the width of the "
            "noise model with --width"
        )
    widths = [CompactConfig(**options, width=width) for width in range(16, WIDEST + 1, 8)]
    found = _last_within(widths, data, cost_ratio)
    if found is None:
        raise InputError(
            f"even a noise model of width 16 costs more than {cost_ratio:g} of an evaluation; "
            "allow more with --cost-ratio"
        )
    deeper = [dataclasses.replace(found, hidden=hidden) for hidden in (2, 3, 4)]
    return _last_within(deeper, data, cost_ratio) or found


def _last_within(
    configs: list[CompactConfig], data: Collected, cost_ratio: float
) -> CompactConfig | None:
    """The last of ever larger models that costs no more than a share of an evaluation."""
    found = None
    for config in configs:
        if share_of(config, data) > cost_ratio:
            break
        found = config
    return found


def share_of(config: CompactConfig, data: Collected) -> float:
    """Operations of a model, as a share of those of one evaluation of the host."""
    batch = next(data.read(1))
    given = batch.given.map(lambda name, value: value if name == "positions" else value[:1])
    flops = flops_of(CompactNoiseModel(config), batch.c[:1], given)
    return flops / (data.host.evaluation_flops or flops)


def calibrated(model: CompactNoiseModel, data: Collected) -> CompactNoiseModel:
    """The model with the sizes of guided - c at each noise level, and of x0, set from the data."""
    levels: dict[float, list[float]] = {}
    clean: list[float] = []
    for batch in data.read(SAMPLE):
        alpha, sigma = (torch.as_tensor(v) for v in (batch.given.alpha, batch.given.sigma))
        squares = (batch.target - batch.c).flatten(1).square().mean(1)
        logs = 2 * (alpha.clamp(min=1e-6).log() - sigma.clamp(min=1e-6).log())
        for level, square in zip(logs.tolist(), squares.tolist(), strict=True):
            levels.setdefault(round(level, 4), []).append(square)
        last = sigma == sigma.min()
        clean += batch.given.x[last].flatten(1).square().mean(1).tolist()
    ordered = sorted(levels)
    sizes = [(sum(levels[at]) / len(levels[at])) ** 0.5 for at in ordered]
    if len(ordered) == 1:  # one stored step: the same everywhere
        ordered, sizes = [ordered[0], ordered[0] + 1], sizes * 2
    model.calibrate(ordered, sizes, (sum(clean) / len(clean)) ** 0.5)
    return model


def _patch(architecture: Any, c: torch.Tensor) -> int:
    """Side of a token in latents: two of the host's own tokens, and at most 32 x 32 tokens.

    What a small model can predict of guidance is smooth, and for the same operations fewer tokens
    may be wider: of what guidance adds on the embedded UNet, a patch of 2 predicted after 500 steps
    what a patch of 1 did after 1000.
    """
    if c.ndim == 3:
        return 1
    own = architecture.get("patch_size") or 1
    own = own[-1] if isinstance(own, list) else own
    wanted = max(2 * own, min(c.shape[-2:]) // 32)
    return next(n for n in range(wanted, 0, -1) if not any(side % n for side in c.shape[-2:]))

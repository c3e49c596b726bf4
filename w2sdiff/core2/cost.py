"""What one evaluation of a host costs, counted by torch."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from w2sdiff.edits import Guidance
from w2sdiff.methods import Plain

if TYPE_CHECKING:
    from w2sdiff.generate import Shot, Studio

__all__ = ["evaluation_flops"]


def evaluation_flops(studio: Studio, shot: Shot) -> float | None:
    """Operations of one single-branch evaluation of one item, at the studio's size.

    One step is drawn without guidance while torch counts; what else a step does is nothing to it.
    None where torch cannot count (a compiled or quantised network).
    """
    from torch.utils.flop_counter import FlopCounterMode

    alone, settings = Plain(base=Guidance(1.0)), studio.settings
    studio.use(studio.model, dataclasses.replace(settings, steps=1))
    try:
        studio.trace(alone, [shot])
        with FlopCounterMode(display=False) as counter:
            evaluations = studio.trace(alone, [shot]).evaluations
        per_network = counter.get_flop_counts()
        named = {name: sum(ops.values()) for name, ops in per_network.items()}
        network = type(studio.denoiser).__name__
        return named.get(network, 0) / evaluations or None
    finally:
        studio.use(studio.model, settings)

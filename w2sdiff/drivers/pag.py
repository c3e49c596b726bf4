"""Perturbed-attention guidance: the attention processors that its pipelines exchange.

A perturbed layer takes the batch apart: in thirds [unconditional, conditional, perturbed] while
classifier-free guidance is on as well, in halves [conditional, perturbed] while it is not. There is
a processor for either in `_pag_attn_processors` (diffusers 0.38 to 0.42).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from w2sdiff.edits.base import Context


@contextmanager
def processors_kept(pipe: Any, denoisers: Sequence[str]) -> Iterator[None]:
    """Put the networks' attention processors back, however the call of the pipeline ends.

    PAG pipelines (diffusers 0.42) set processors of their own before the loop and the former ones
    after it. An exception, or a preamble that is run for another prompt, leaves in between.
    """
    if not hasattr(pipe, "pag_attn_processors"):
        yield
        return
    # Not by `set_attn_processor`, which sets every layer's and takes milliseconds.
    before = [
        (layer, layer.processor)
        for name in denoisers
        for layer in pipe.__dict__[name].modules()
        if hasattr(type(layer), "set_processor")
    ]
    try:
        yield
    finally:
        for layer, processor in before:
            if layer.processor is not processor:
                layer.set_processor(processor)


@contextmanager
def in_halves(network: nn.Module, context: Context) -> Iterator[None]:
    """Let the perturbed layers of a network take its batch for [conditional, perturbed]."""
    thirds, halves = context.pipe._pag_attn_processors
    # The pipeline chooses its layers before the loop, and to walk a large network takes a while.
    layers: list[Any] = context.remember_in_call(
        ("perturbed layers", id(network)),
        lambda: [part for part in network.modules() if getattr(part, "processor", None) is thirds],
    )
    for layer in layers:
        layer.processor = halves
    try:
        yield
    finally:
        for layer in layers:
            layer.processor = thirds

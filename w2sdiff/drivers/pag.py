"""Perturbed-attention guidance: the attention processors that its pipelines exchange."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def processors_kept(pipe: Any, denoisers: Sequence[str]) -> Iterator[None]:
    """Put the networks' attention processors back, however the call of the pipeline ends.

    PAG pipelines (diffusers 0.42) set processors of their own before the loop and the former ones
    after it. An exception, or a preamble that is run for another prompt, leaves in between.
    """
    if not hasattr(pipe, "pag_attn_processors"):
        yield
        return
    networks = [pipe.__dict__[name] for name in denoisers]
    before = [network.attn_processors for network in networks]
    try:
        yield
    finally:
        for network, processors in zip(networks, before, strict=True):
            network.set_attn_processor(processors)

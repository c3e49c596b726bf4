"""From a weak high-resolution transformer to a strong one: PixArt-Σ's recipe, step by step.

Chen et al. 2024, arXiv 2403.04692, section 3.3. Each step starts from the network of the one
before, adapts it for a short while, and leaves a stock diffusers folder behind:

* another VAE, whose latents the transformer has to learn anew;
* a higher resolution, positions interpolated so that the network sees those it knows;
* compressed keys and values, initialised as averages.

    Setup (which network, what changes) + a source of pictures + Tuning (how) -> `tune`
"""

from __future__ import annotations

from w2sdiff.highres.changes import Setup, raise_resolution
from w2sdiff.highres.data import Folder, Rendered, Source
from w2sdiff.highres.tune import tune
from w2sdiff.highres.tuning import Progress, Tuning

__all__ = [
    "Folder",
    "Progress",
    "Rendered",
    "Setup",
    "Source",
    "Tuning",
    "raise_resolution",
    "tune",
]

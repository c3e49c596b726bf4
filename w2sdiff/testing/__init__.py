"""Tiny real pipelines with random weights, for whoever tests a method, an edit or a new diffusers.

Stock classes of diffusers with their own text encoders and byte-level tokenizers: no download, well
under a second each. They prove plumbing and cost, never quality.
"""

from w2sdiff.testing.variants import VARIANTS, Variant, variants

__all__ = ["VARIANTS", "Variant", "variants"]

"""Tiny real pipelines with random weights, for whoever tests a method, an edit or a new diffusers.

Stock classes of diffusers with their own text encoders and byte-level tokenizers: no download, well
under a second each. They prove plumbing and cost, never quality.
"""

import importlib
import pkgutil

from w2sdiff.testing import pipelines
from w2sdiff.testing.variants import VARIANTS, Variant, variants

for _module in pkgutil.iter_modules(pipelines.__path__):  # each adds its rows to the table
    importlib.import_module(f"{pipelines.__name__}.{_module.name}")

__all__ = ["VARIANTS", "Variant", "variants"]

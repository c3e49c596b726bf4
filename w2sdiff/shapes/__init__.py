"""The embedded world: captions, pictures, an exact oracle, and small checkpoints trained on it."""

from __future__ import annotations

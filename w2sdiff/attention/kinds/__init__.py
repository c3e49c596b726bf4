"""One file per way to make few keys and values of many; see `base` for the contract."""

from w2sdiff.attention.kinds.base import KINDS, KVCompressor

__all__ = ["KINDS", "KVCompressor"]

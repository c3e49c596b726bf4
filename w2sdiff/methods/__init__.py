"""One file per method; see `base` for the vocabulary."""

from w2sdiff.methods.autoguidance import AutoGuidance
from w2sdiff.methods.base import METHODS, ROLES, Eval, Method, Step, Steps, Window, from_json
from w2sdiff.methods.plain import Plain
from w2sdiff.methods.w2sd import W2SD, Inversion
from w2sdiff.methods.zigzag import ZigZag

__all__ = [
    "METHODS",
    "ROLES",
    "W2SD",
    "AutoGuidance",
    "Eval",
    "Inversion",
    "Method",
    "Plain",
    "Step",
    "Steps",
    "Window",
    "ZigZag",
    "from_json",
]

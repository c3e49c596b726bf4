"""One file per method; see `base` for the vocabulary."""

from w2sdiff.methods.autoguidance import AutoGuidance
from w2sdiff.methods.base import METHODS, ROLES, Eval, Method, Step, Steps, Window, from_json
from w2sdiff.methods.core2 import Core2
from w2sdiff.methods.plain import Plain
from w2sdiff.methods.real import real_role, unguided
from w2sdiff.methods.stale import StaleGuidance
from w2sdiff.methods.w2sd import W2SD, Inversion
from w2sdiff.methods.zcore2 import ZCore2
from w2sdiff.methods.zigzag import ZigZag

__all__ = [
    "METHODS",
    "ROLES",
    "W2SD",
    "AutoGuidance",
    "Core2",
    "Eval",
    "Inversion",
    "Method",
    "Plain",
    "StaleGuidance",
    "Step",
    "Steps",
    "Window",
    "ZCore2",
    "ZigZag",
    "from_json",
    "real_role",
    "unguided",
]

"""One file per kind of difference between weak and strong; see `base` for the contract."""

from w2sdiff.edits.base import EDITS, Context, Edit, Edits
from w2sdiff.edits.checkpoint import Checkpoint
from w2sdiff.edits.compressed_kv import CompressedKV
from w2sdiff.edits.grammar import parse_edits
from w2sdiff.edits.guidance import Guidance
from w2sdiff.edits.learned_guidance import LearnedGuidance
from w2sdiff.edits.lora import Lora
from w2sdiff.edits.prompt import Prompt

__all__ = [
    "EDITS",
    "Checkpoint",
    "CompressedKV",
    "Context",
    "Edit",
    "Edits",
    "Guidance",
    "LearnedGuidance",
    "Lora",
    "Prompt",
    "parse_edits",
]

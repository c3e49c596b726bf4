"""One file per kind of difference between weak and strong; see `base` for the contract."""

from w2sdiff.edits.base import EDITS, Context, Edit, Edits
from w2sdiff.edits.checkpoint import Checkpoint
from w2sdiff.edits.compressed_kv import CompressedKV
from w2sdiff.edits.control_scale import ControlScale
from w2sdiff.edits.embedded_guidance import EmbeddedGuidance
from w2sdiff.edits.experts import Experts
from w2sdiff.edits.grammar import parse_edits
from w2sdiff.edits.guidance import Guidance
from w2sdiff.edits.ip_adapter_scale import IPAdapterScale
from w2sdiff.edits.learned_guidance import LearnedGuidance
from w2sdiff.edits.lora import Lora
from w2sdiff.edits.lora_files import load_lora
from w2sdiff.edits.no_control import NoControl
from w2sdiff.edits.prompt import Prompt
from w2sdiff.edits.skip_layers import SkipLayers

__all__ = [
    "EDITS",
    "Checkpoint",
    "CompressedKV",
    "Context",
    "ControlScale",
    "Edit",
    "Edits",
    "EmbeddedGuidance",
    "Experts",
    "Guidance",
    "IPAdapterScale",
    "LearnedGuidance",
    "Lora",
    "NoControl",
    "Prompt",
    "SkipLayers",
    "load_lora",
    "parse_edits",
]

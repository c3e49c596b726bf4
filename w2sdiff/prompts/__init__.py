"""Prompts and where they come from: files, the known sets of the field, the embedded world's."""

from __future__ import annotations

from w2sdiff.prompts.fetch import fetch_set
from w2sdiff.prompts.files import PromptRow, check_prompt, read_prompts
from w2sdiff.prompts.known import KNOWN, KnownFile, KnownSet
from w2sdiff.prompts.seeds import index_seed, seed_of
from w2sdiff.prompts.sets import BUILT_IN, PromptSet, find_files, load_set

__all__ = [
    "BUILT_IN",
    "KNOWN",
    "KnownFile",
    "KnownSet",
    "PromptRow",
    "PromptSet",
    "check_prompt",
    "fetch_set",
    "find_files",
    "index_seed",
    "load_set",
    "read_prompts",
    "seed_of",
]

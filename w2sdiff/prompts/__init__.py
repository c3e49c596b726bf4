"""Prompts and where they come from."""

from __future__ import annotations

from w2sdiff.prompts.files import PromptRow, check_prompt, read_prompts

__all__ = ["PromptRow", "check_prompt", "read_prompts"]

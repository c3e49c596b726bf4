"""Prompts as tokens: counted as they are, cut where the network ends, with the end mark kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2sdiff.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TOKENIZER_FILES", "Tokeniser", "clip_tokeniser"]

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json")


@dataclass(frozen=True)
class Tokeniser:
    """Prompts to ids.

    CLIP reads its text off the end mark. Where a cut loses that mark, all long prompts give one
    and the same vector (torchmetrics issue 2883), so it is kept: the last token before it goes.

    Attributes:
        context: how many tokens are read, start and end mark included.
        split: a prompt -> all its ids, start and end mark included.
        padding: the id that fills up; it comes after the end mark and is never looked at.
    """

    context: int
    split: Callable[[str], list[int]]
    padding: int = 0

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """The ids, int64 [n, context]."""
        import torch

        ids = torch.full((len(prompts), self.context), self.padding)
        for row, prompt in enumerate(prompts):
            whole = self.split(prompt)
            kept = whole if len(whole) <= self.context else [*whole[: self.context - 1], whole[-1]]
            ids[row, : len(kept)] = torch.tensor(kept)
        return ids

    def count(self, prompts: Sequence[str]) -> list[int]:
        """How many tokens each prompt has before it is cut."""
        return [len(self.split(prompt)) for prompt in prompts]


def clip_tokeniser(context: int, folder: Path | None = None) -> Tokeniser:
    """Return the tokeniser in a folder, or CLIP's own byte pairs (they come with open_clip).

    Raises:
        InputError: the folder's tokenizer has no end mark.

    Example:
        >>> clip_tokeniser(77).count(["a photo of a cat"])
        [7]
    """
    if folder is None:
        from open_clip.tokenizer import SimpleTokenizer

        simple = SimpleTokenizer(context_length=context)
        start, end = simple.sot_token_id, simple.eot_token_id
        return Tokeniser(context, lambda text: [start, *simple.encode(text), end])

    from transformers import AutoTokenizer

    stock: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    if stock.eos_token_id is None:
        raise InputError(f"the tokenizer in {folder.name} has no end mark, which CLIP reads")

    def split(text: str) -> list[int]:
        # Not "too long for the model": that is what the cut is for.
        ids: list[int] = stock(text, verbose=False).input_ids
        return ids

    return Tokeniser(context, split, stock.eos_token_id)

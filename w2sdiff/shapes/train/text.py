"""Tiny text encoders with their tokenizers: CLIP for the UNet, T5 for the transformer.

They are taught the captions' meaning before any picture is seen, and then stay as they are: the
weak and the strong denoiser read the same embeddings, so an early checkpoint differs from a late
one in the denoiser alone.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from w2sdiff.shapes.train.loop import Schedule, train
from w2sdiff.shapes.world import SLOT_SIZES, VOCABULARY, sample_caption

__all__ = [
    "MAX_TOKENS",
    "SCHEDULE",
    "WIDTH",
    "build_encoder",
    "build_tokenizer",
    "embed",
    "train_text",
]

WIDTH = 64
MAX_TOKENS = 16  # the longest caption has 9 words; CLIP adds two tokens, T5 one
SCHEDULE = Schedule(steps=500, batch=128, lr=2e-3, warmup=100, cooldown=0.5, ema=0.99)
OPEN_SHARE = 0.3


def build_tokenizer(kind: str) -> Any:
    """Return a stock `CLIPTokenizer` or `T5Tokenizer` in which each word of the world is a token.

    Other text is spelled out, byte by byte (CLIP) or letter by letter (T5).
    """
    if kind == "clip":
        from transformers import CLIPTokenizer

        vocabulary, merges = _byte_pairs()
        return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)
    from transformers import T5Tokenizer

    letters = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    pieces += [(f"▁{word}", -4.0) for word in VOCABULARY]
    pieces += [(letter, -10.0) for letter in letters]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=MAX_TOKENS)


def build_encoder(kind: str, tokenizer: Any) -> Any:
    """Return a fresh `CLIPTextModel` or `T5EncoderModel`, two layers of width 64."""
    if kind == "clip":
        from transformers import CLIPTextConfig, CLIPTextModel

        return CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                intermediate_size=4 * WIDTH,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=MAX_TOKENS,
                projection_dim=WIDTH,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=WIDTH,
            d_kv=WIDTH // 4,
            d_ff=2 * WIDTH,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
            use_cache=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def tokenise(tokenizer: Any, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Return ids and mask, [n, 16] each, padded as the stock pipelines pad."""
    tokens = tokenizer(
        texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    return tokens.input_ids, tokens.attention_mask


@torch.no_grad()
def embed(kind: str, tokenizer: Any, encoder: Any, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Return what the denoiser reads: embeddings [n, 16, 64] and mask [n, 16].

    As `StableDiffusionPipeline` does, CLIP sees (and the UNet attends to) the padding; as
    `PixArtSigmaPipeline` does, T5 and the transformer are given the mask. Padding to 16 tokens
    here and to 300 there is then the same thing.
    """
    ids, mask = (t.to(encoder.device) for t in tokenise(tokenizer, texts))
    if kind == "clip":
        return encoder(ids)[0], torch.ones_like(mask)
    return encoder(ids, attention_mask=mask)[0], mask


class Reader(nn.Module):
    """An encoder with a head that reads a caption's meaning off its embeddings."""

    def __init__(self, kind: str, encoder: Any) -> None:
        """Wrap the encoder of this kind."""
        super().__init__()
        self.kind = kind
        self.encoder = encoder
        self.head = nn.Linear(WIDTH, sum(SLOT_SIZES))

    def forward(self, ids: Tensor, mask: Tensor, slots: Tensor) -> Tensor:
        """Return the mean cross-entropy of the slots [n, 7], read off each token that may know.

        CLIP is causal: only the tokens from the first end-of-text on have seen the whole caption.
        In T5 every token has.
        """
        if self.kind == "clip":
            states = self.encoder(ids)[0]
            last = mask.sum(1, keepdim=True) - 1
            knows = torch.arange(ids.shape[1], device=ids.device) >= last
        else:
            states = self.encoder(ids, attention_mask=mask)[0]
            knows = mask.bool()
        rows = knows.nonzero()
        scores = self.head(states[knows]).split(SLOT_SIZES, dim=-1)
        wanted = slots[rows[:, 0]].unbind(-1)
        losses = [nn.functional.cross_entropy(s, w) for s, w in zip(scores, wanted, strict=True)]
        return torch.stack(losses).mean()


def train_text(
    kind: str, out: Path, *, seed: int = 0, schedule: Schedule = SCHEDULE, device: str = "cpu"
) -> tuple[Any, Any]:
    """Train an encoder to tell what captions mean and save it in `out/text/<kind>`.

    The loss is the cross-entropy of `Caption.slots` (category, number, shapes, colours,
    relation), read off by a linear head that is then thrown away.

    Returns:
        The tokenizer and the encoder.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(kind)
    reader = Reader(kind, build_encoder(kind, tokenizer)).to(device)

    def loss(step: int, _generator: torch.Generator) -> Tensor:
        rng = np.random.default_rng((seed, step))
        captions = [sample_caption(rng, open_share=OPEN_SHARE) for _ in range(schedule.batch)]
        ids, mask = tokenise(tokenizer, [c.text for c in captions])
        slots = torch.tensor([c.slots for c in captions])
        value: Tensor = reader(ids.to(device), mask.to(device), slots.to(device))
        return value

    train(reader, loss, schedule, out / "runs" / kind, seed=seed)
    encoder = reader.encoder.half().float().eval()
    folder = out / "text" / kind
    tokenizer.save_pretrained(folder / "tokenizer")
    encoder.save_pretrained(folder / "text_encoder")
    return tokenizer, encoder


def _byte_pairs() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return a byte-level vocabulary and merges that join each word of the world into a token."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    words = [[*word[:-1], f"{word[-1]}</w>"] for word in VOCABULARY]
    merges: list[tuple[str, str]] = []
    while pairs := [pair for word in words for pair in pairwise(word)]:
        merge = max(dict.fromkeys(pairs), key=pairs.count)  # as byte-pair encoding is trained
        merges.append(merge)
        pieces.append("".join(merge))
        words = [_join(word, merge) for word in words]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    return {piece: number for number, piece in enumerate(pieces)}, merges


def _join(word: list[str], merge: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    for piece in word:
        if joined and (joined[-1], piece) == merge:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined

"""What the published noise model sees of a prompt: 64 rows of a singular value decomposition."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from w2sdiff.errors import InputError

__all__ = ["PromptRows", "decompose"]


@dataclass(frozen=True, eq=False)
class PromptRows:
    """A prompt as the published noise model takes it, for R stacked token embeddings of width D.

    Attributes:
        rows: U[:k]^T diag(S[:k]) Vh[:k] of the stacked embeddings. U is cut along its *rows*, as
            published, and not along its columns: this is no low-rank copy of the embeddings.
            Shape: [B, R, D].
        centre: The mean over k of the concatenated (U[k], S[k], Vh[k]). Shape: [B, R + 1 + D].
    """

    rows: Tensor
    centre: Tensor

    @classmethod
    def from_factors(cls, u: Tensor, s: Tensor, vh: Tensor) -> PromptRows:
        """Combine the first k rows of U [B, k, R], of S [B, k] and of Vh [B, k, D]."""
        rows = (u.mT * s[:, None, :]) @ vh
        return cls(rows, torch.cat([u, s[..., None], vh], dim=2).mean(1))


def decompose(stacked: Tensor, count: int) -> PromptRows:
    """Decompose stacked token embeddings, each sample by itself and in float32.

    The network sees the factors themselves, and these are not unique: each pair of singular vectors
    has a free sign, and where the embeddings have no full rank (the negative half of Stable
    Diffusion XL is all zeros unless there is a negative prompt) the left vectors of the null space
    are any basis. The decomposition library decides, as it does in the published code, so results
    on two kinds of device may differ. On one machine a sample's result does not depend on the
    others in its batch: no batched decomposition, which may take another path, is used.

    Args:
        stacked: both branches' embeddings, one below the other. Shape: [B, R, D].
        count: rows kept of each factor; fewer where the decomposition has fewer.

    Raises:
        InputError: the embeddings are not finite.

    Cost: one decomposition per different sample: at 154 x 2048 about 0.03 s, at 666 x 4096 about
    one second on one core.
    """
    if not stacked.isfinite().all():
        bad = int(stacked.isfinite().logical_not().sum())
        raise InputError(
            f"the text embeddings are not finite in {bad} places, and have no singular value "
            "decomposition; does the text encoder overflow in half precision?"
        )
    factors: list[tuple[Tensor, Tensor, Tensor]] = []
    for i, sample in enumerate(stacked):
        # Several pictures of one prompt are one decomposition.
        twin = next((j for j in range(i) if torch.equal(sample, stacked[j])), None)
        factors.append(_factors(sample, count) if twin is None else factors[twin])
    u, s, vh = (torch.stack(part) for part in zip(*factors, strict=True))
    return PromptRows.from_factors(u, s, vh)


def _factors(sample: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    # More rows than columns: only the full form has square U, whose rows are as published.
    # Otherwise the reduced form has the same U, and none of the D - R further rows of Vh.
    tall = sample.shape[0] > sample.shape[1]
    u, s, vh = torch.linalg.svd(sample.float(), full_matrices=tall)
    kept = min(count, *sample.shape)
    return u[:kept], s[:kept], vh[:kept]

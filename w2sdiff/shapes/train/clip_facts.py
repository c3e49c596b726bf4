"""What two objects are to each other, as targets that pictures and captions share.

Contrastive learning alone stays with bags of words for a long time (Yuksekgonul et al. 2023,
arXiv:2210.01936). One linear head that reads the same facts off both kinds of features shows the
way out; it is thrown away afterwards.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from w2sdiff.shapes.captions import Caption
from w2sdiff.shapes.render import COLOURS, SHAPES

__all__ = ["FACTS", "Facts", "of_captions", "of_pictures"]

KINDS = len(SHAPES) * len(COLOURS)
UNKNOWN = -100  # what cross_entropy passes over
FACTS = KINDS + 4 * (KINDS + 1)
_OPPOSITE = (1, 0, 3, 2)  # of left, right, above, below


class Facts(nn.Module):
    """Reads off features which kinds are there, and which one is left, right, above, below."""

    def __init__(self, width: int) -> None:
        """A linear head on unit vectors of this width."""
        super().__init__()
        self.head = nn.Linear(width, FACTS)
        self.scale = width**0.5

    def forward(self, features: Tensor, there: Tensor, sides: Tensor) -> Tensor:
        """Return the loss of features [n, width].

        Args:
            features: unit vectors.
            there: whether each kind is there, 0, 1 or -1 for unknown, [n, 24].
            sides: 1 + the kind that is left, right, above, below of the other, 0 for none of the
                two, -100 for unknown, [n, 4].
        """
        read = self.head(self.scale * features)
        seen = functional.binary_cross_entropy_with_logits(
            read[:, :KINDS], there.clamp(min=0).float(), reduction="none"
        )
        rows = read[:, KINDS:].unflatten(1, (4, KINDS + 1)).flatten(0, 1)
        # Sums, not means over what is known: a batch may know nothing.
        placed = functional.cross_entropy(
            rows, sides.flatten(), ignore_index=UNKNOWN, reduction="sum"
        )
        return ((seen * (there >= 0)).sum() + placed) / len(features)


def of_captions(captions: list[Caption]) -> tuple[Tensor, Tensor]:
    """What captions say, (there, sides); nothing where they leave something open."""
    there = torch.full((len(captions), KINDS), -1)
    sides = torch.full((len(captions), 4), UNKNOWN)
    for row, caption in enumerate(captions):
        if caption.is_open:
            continue
        kinds = [
            SHAPES.index(d.shape or "") * len(COLOURS) + COLOURS.index(d.colour or "")
            for d in caption.demands
        ]
        there[row] = 0
        there[row, kinds] = 1
        if caption.relation:
            side = caption.slots[-1] - 1
            sides[row] = 0
            sides[row, side], sides[row, _OPPOSITE[side]] = 1 + kinds[0], 1 + kinds[1]
    return there, sides


def of_pictures(objects: Tensor, kinds: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """What readings say, (there, sides); nothing where they are not clear."""
    numbers = kinds[..., 0] * len(COLOURS) + kinds[..., 1]
    there = torch.zeros(len(objects), KINDS + 1, dtype=torch.int64)
    there.scatter_(1, torch.where(kinds[..., 0] >= 0, numbers, KINDS), 1)
    there = torch.where((objects >= 0)[:, None], there[:, :KINDS], -1)
    dx, dy = (places[:, 0, :2] - places[:, 1, :2]).unbind(-1)
    side = torch.where(dx.abs() > dy.abs(), (dx >= 0).long(), 2 + (dy >= 0).long())
    sides = torch.zeros(len(objects), 4, dtype=torch.int64)
    sides.scatter_(1, side[:, None], 1 + numbers[:, :1])
    sides.scatter_(1, torch.tensor(_OPPOSITE)[side][:, None], 1 + numbers[:, 1:2])
    pair = (objects == 2) & (numbers[:, 0] != numbers[:, 1])
    return there, torch.where(pair[:, None], sides, UNKNOWN)

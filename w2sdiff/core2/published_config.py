"""Sizes of the published noise models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from w2sdiff.errors import InputError

__all__ = ["BLOCKS_PER_STAGE", "SD35", "SDXL", "PublishedConfig"]

BLOCKS_PER_STAGE = 4
"""Blocks between two places where the prompt scales and shifts the tokens."""


@dataclass(frozen=True)
class PublishedConfig:
    """Everything that decides the shape of a published noise model, and how its host feeds it.

    `SDXL` and `SD35` are the two that were published; the defaults are those of `SDXL`.

    Args:
        channels: of the prediction.
        layers: transformer blocks, at most 8.
        heads: of each block's attention.
        head_dim: width of a head; heads * head_dim is the width of the network.
        patch: side of a patch.
        sample_size: side of the latents it was trained on, which fixes the position embedding.
        max_patches: largest height and width in patches.
        text_tokens: token embeddings per branch.
        text_dim: their width.
        pooled_dim: width of a branch's pooled embedding.
        pool_projection: whether a layer brings the two pooled embeddings to the width of the text.
        bottleneck: inner width of what turns the prompt into scales and shifts.
        svd_rows: rows kept of each factor of the prompt's singular value decomposition.
        negative_first: whether the negative branch is stacked above the positive one (in the pooled
            embedding: before it).
        loras: low-rank sets, one per step of the run it was trained on.
        lora_rank: rank of each.
        lora_alpha: what they are multiplied by.

    Raises:
        InputError: a size is not a positive number, or sizes do not fit each other.

    Example:
        >>> SDXL.width, SD35.layers
        (1536, 8)
        >>> PublishedConfig.from_json(SD35.to_json()) == SD35
        True
    """

    channels: int = 4
    layers: int = 4
    heads: int = 24
    head_dim: int = 64
    patch: int = 2
    sample_size: int = 128
    max_patches: int = 192
    text_tokens: int = 77
    text_dim: int = 2048
    pooled_dim: int = 1280
    pool_projection: bool = True
    bottleneck: int = 128
    svd_rows: int = 64
    negative_first: bool = True
    loras: int = 50
    lora_rank: int = 48
    lora_alpha: float = 1.0

    def __post_init__(self) -> None:
        """Check the sizes."""
        for name, value in asdict(self).items():
            if name in ("pool_projection", "negative_first"):
                if not isinstance(value, bool):
                    raise InputError(f"{name} is true or false, got {value!r}")
            elif name == "lora_alpha":
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise InputError(f"lora_alpha is a number, got {value!r}")
            elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is a positive whole number, got {value!r}")
        if self.layers > 2 * BLOCKS_PER_STAGE:
            raise InputError(
                f"layers is at most {2 * BLOCKS_PER_STAGE}: the published network has scales and "
                f"shifts for two stages of {BLOCKS_PER_STAGE} blocks; got {self.layers}"
            )
        if self.width % 4:
            raise InputError(
                "heads * head_dim is a multiple of 4, which the position embedding needs; got "
                f"{self.heads} * {self.head_dim}"
            )
        if not self.pool_projection and 2 * self.pooled_dim != self.text_dim:
            raise InputError(
                "without pool_projection the two pooled embeddings side by side are as wide as the "
                f"text: expected pooled_dim {self.text_dim / 2:g}, got {self.pooled_dim}"
            )

    @property
    def width(self) -> int:
        """Of the network."""
        return self.heads * self.head_dim

    @property
    def rows(self) -> int:
        """Token embeddings of both branches."""
        return 2 * self.text_tokens

    def replace(self, **changes: Any) -> PublishedConfig:
        """Return a copy with other sizes."""
        return replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """Return a value of JSON from which `from_json` makes an equal one."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PublishedConfig:
        """Read what `to_json` returned.

        Raises:
            InputError: it is of another form.
        """
        known = [field.name for field in fields(cls)]
        if not isinstance(data, Mapping) or set(data) - set(known):
            raise InputError(
                f"expected the configuration of a published noise model ({', '.join(known)}), "
                f"got {data!r}"
            )
        return cls(**data)


SDXL = PublishedConfig()
"""Stable Diffusion XL: 50 steps of DDIM, guidance 5.5."""

SD35 = PublishedConfig(
    channels=16,
    layers=8,
    text_tokens=333,  # 77 of CLIP and 256 of T5
    text_dim=4096,
    pooled_dim=2048,
    pool_projection=False,
    negative_first=False,
    loras=28,
    lora_rank=64,
)
"""Stable Diffusion 3.5 Large: 28 steps of flow matching, guidance 3.5."""

"""The noise model of the CoRe2 paper as its authors published it, key for key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from w2sdiff.core2.bank import Bank, bank_linears, lora_index
from w2sdiff.core2.last_prompt import LastPrompt
from w2sdiff.core2.noise_model import Given, NoiseModel
from w2sdiff.core2.prompt_svd import PromptRows, decompose
from w2sdiff.core2.published_config import BLOCKS_PER_STAGE, SD35, SDXL, PublishedConfig
from w2sdiff.errors import InputError

__all__ = ["SD35", "SDXL", "PublishedConfig", "PublishedNoiseModel"]

_STAGES = ("pre16", "pre24")  # which scale and shift follow a block, by stage


class PublishedNoiseModel(NoiseModel):
    """The conditional prediction as an image, through a small transformer, to the guided one.

    Shao et al. 2025, arXiv 2503.09662. One class for both published hosts; `state_dict()` has the
    keys and shapes of their checkpoints (see `w2sdiff.core2.weights.load_published`). The network
    is told neither the noise level nor the noisy latents: the step chooses one of the low-rank sets
    that every linear layer has, and that is all it knows of time.

    The negative branch is part of the input. For Stable Diffusion 3.5 the published code always
    gives it the embeddings of the empty prompt, also where the user has another negative prompt,
    and always 256 tokens of T5; for SDXL, what the host uses (all zeros by default). What
    `given` holds is used here. `given.mask` is not: padding was part of the training.

    Args:
        config: sizes; `SDXL`, `SD35`, or any other.
        reference: choose the low-rank set as the published code does; see `lora_index`.

    Raises:
        InputError: on use, if the prediction or the prompt has another shape than it was built for,
            or a part of the prompt is missing.

    Cost: per step 1.2 (SDXL) or 2.5 (SD35) TFLOPs for a latent of 128 x 128; per prompt one
    decomposition, see `decompose`.

    Example:
        >>> tiny = SDXL.replace(
        ...     layers=1, heads=2, head_dim=4, max_patches=8, sample_size=8, text_tokens=3,
        ...     text_dim=6, pooled_dim=5, bottleneck=4, loras=2, lora_rank=1,
        ... )
        >>> model, x = PublishedNoiseModel(tiny), torch.ones(1, 4, 8, 8)
        >>> text, pooled = torch.ones(1, 3, 6), torch.ones(1, 5)
        >>> given = Given(x, 0.6, 0.8, text, negative=text, pooled=pooled, negative_pooled=pooled)
        >>> model(x, given).shape
        torch.Size([1, 4, 8, 8])
    """

    form = "published"

    def __init__(self, config: PublishedConfig = SDXL, *, reference: bool = False) -> None:
        from diffusers.models.attention import BasicTransformerBlock
        from diffusers.models.embeddings import PatchEmbed
        from diffusers.models.normalization import AdaLayerNormContinuous

        super().__init__()
        self.config, self.reference = config, reference
        self._last_prompt: LastPrompt[PromptRows] = LastPrompt()
        width = config.width
        self.pos_embed = PatchEmbed(
            height=config.sample_size,
            width=config.sample_size,
            patch_size=config.patch,
            in_channels=config.channels,
            embed_dim=width,
            pos_embed_max_size=config.max_patches,
        )
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(
                dim=width,
                num_attention_heads=config.heads,
                attention_head_dim=config.head_dim,
                ff_inner_dim=2 * width,
            )
            for _ in range(config.layers)
        )
        self.norm_out = AdaLayerNormContinuous(width, width, elementwise_affine=False, eps=1e-6)
        self.proj_out = nn.Linear(width, config.patch**2 * config.channels)

        # The names are the checkpoint's. `preN_linear` shifts and `preN_linear2` scales the tokens:
        # 8 after the patch embedding, 16 and 24 after each block of the first and second stage.
        # With four layers, as in SDXL, there is no second stage: the checkpoint holds pre24_linear
        # and pre24_linear2, and nothing reads them.
        for name in ("pre8_linear", "pre16_linear", "pre24_linear"):
            setattr(self, name, _bottleneck(config))
        for name in ("pre8_linear2", "pre16_linear2", "pre24_linear2"):
            setattr(self, name, _bottleneck(config))
        self.last_linear = _bottleneck(config, zero=False)
        self.skip_connection2 = nn.Linear(config.text_dim, 1, bias=False)
        self.skip_connection = _zero(nn.Linear(config.rows + 1, 2 * config.channels, bias=False))
        self.trans_linear = _zero(nn.Linear(config.rows + 1 + config.text_dim, width, bias=False))
        if config.pool_projection:
            self.pool_prompt_linear = nn.Linear(2 * config.pooled_dim, config.text_dim, bias=False)

        self.bank = Bank(config.loras, config.lora_rank, config.lora_alpha)
        bank_linears(self, self.bank)

    @property
    def channels(self) -> int | None:
        """Channels of the prediction."""
        return self.config.channels

    def to_config(self) -> dict[str, Any]:
        """The sizes."""
        return self.config.to_json()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> PublishedNoiseModel:
        """Inverse of `to_config`."""
        return cls(PublishedConfig.from_json(config))

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; predictions are converted to it and back."""
        return self.pos_embed.proj.weight.dtype  # type: ignore[no-any-return]

    def forward(self, c: Tensor, given: Given) -> Tensor:
        """Turn the conditional prediction into a guided one.

        Args:
            c: the host's conditional prediction. Shape: [B, C, H, W].
            given: the prompt and the step.

        Returns:
            The guided prediction, in the type of c. Shape: [B, C, H, W].

        Raises:
            InputError: a shape does not fit, or a part of the prompt is missing.
        """
        cfg = self.config
        self._check_size(c)
        shape = (len(c), cfg.text_tokens, cfg.text_dim)
        text = _part(given.text, "text", shape).detach()
        negative = _part(given.negative, "negative", shape).detach()
        pooled = _part(given.pooled, "pooled", (len(c), cfg.pooled_dim))
        negative_pooled = _part(given.negative_pooled, "negative_pooled", pooled.shape)
        prompt = self._last_prompt.get(
            (text, negative), lambda: decompose(self._join(text, negative), cfg.svd_rows)
        )
        reference = self.reference or given.reference
        index = lora_index(given.step, given.num_steps, cfg.loras, reference=reference)
        return self.refine(c, prompt, self._join(pooled, negative_pooled), index)

    def refine(self, c: Tensor, prompt: PromptRows, pooled: Tensor, index: int) -> Tensor:
        """Run the network itself.

        Args:
            c: the conditional prediction. Shape: [B, C, H, W].
            prompt: both branches' embeddings, decomposed.
            pooled: both branches' pooled embeddings. Shape: [B, 2 P].
            index: which low-rank set is on.
        """
        self.bank.index = index
        rows, centre, pooled, x = (
            part.to(c.device, self.dtype) for part in (prompt.rows, prompt.centre, pooled, c)
        )
        if self.config.pool_projection:
            pooled = self.pool_prompt_linear(pooled)
        rows = torch.cat([rows, pooled[:, None]], dim=1)
        bend = self.trans_linear(centre)

        skip = self.skip_connection(self.skip_connection2(rows).squeeze(-1))[..., None, None]
        scale, shift = skip.chunk(2, dim=1)
        skipped = x * scale + shift

        hidden = self._modulate("pre8", self.pos_embed(x), rows, bend)
        for i, block in enumerate(self.transformer_blocks):
            stage = _STAGES[i // BLOCKS_PER_STAGE]
            hidden = self._modulate(stage, block(hidden), rows, bend)
        hidden = self.proj_out(self.norm_out(hidden, _summary(self.last_linear, rows)))
        out: Tensor = self._image(hidden, x) + skipped
        return out.to(c.dtype)

    def _join(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Both branches in the host's order, along the dimension after the batch."""
        first, last = (negative, positive) if self.config.negative_first else (positive, negative)
        return torch.cat([first, last], dim=1)

    def _modulate(self, stage: str, hidden: Tensor, rows: Tensor, bend: Tensor) -> Tensor:
        scale = 1 + _summary(getattr(self, f"{stage}_linear2"), rows) + bend
        shift = _summary(getattr(self, f"{stage}_linear"), rows)
        return hidden * scale[:, None] + shift[:, None]

    def _image(self, tokens: Tensor, like: Tensor) -> Tensor:
        """[B, H W / p^2, p^2 C] -> [B, C, H, W]."""
        patch, (batch, channels, height, width) = self.config.patch, like.shape
        grid = tokens.reshape(
            batch, height // patch, width // patch, patch, patch, channels
        ).permute(0, 5, 1, 3, 2, 4)
        return grid.reshape(like.shape)

    def _check_size(self, c: Tensor) -> None:
        cfg = self.config
        if c.ndim != 4 or c.shape[1] != cfg.channels:
            raise InputError(
                f"this noise model takes predictions of shape [B, {cfg.channels}, H, W], "
                f"got {list(c.shape)}; was it trained for another host?"
            )
        for name, size in zip(("height", "width"), c.shape[2:], strict=True):
            if size % cfg.patch:
                raise InputError(
                    f"{name} {size} of the latents is not divisible by the patch size {cfg.patch}; "
                    f"use {size - size % cfg.patch} or {size + cfg.patch - size % cfg.patch}"
                )
            if size > cfg.patch * cfg.max_patches:
                raise InputError(
                    f"{name} {size} of the latents is beyond this noise model's position "
                    f"embedding; expected at most {cfg.patch * cfg.max_patches}"
                )


def _bottleneck(config: PublishedConfig, *, zero: bool = True) -> nn.Sequential:
    last = nn.Linear(config.bottleneck, config.width)
    return nn.Sequential(
        nn.Linear(config.text_dim, config.bottleneck),
        nn.SiLU(),
        nn.LayerNorm(config.bottleneck),
        _zero(last) if zero else last,
    )


def _zero(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    return linear


def _summary(bottleneck: nn.Sequential, rows: Tensor) -> Tensor:
    """The mean of a bottleneck over the rows of a prompt; [B, R + 1, D] -> [B, width].

    The mean is taken before the last layer instead of after it: that layer is linear.
    """
    *inner, last = bottleneck
    for layer in inner:
        rows = layer(rows)
    out: Tensor = last(rows.mean(1))
    return out


def _part(tensor: Tensor | None, name: str, shape: tuple[int, ...]) -> Tensor:
    """A part of the prompt, checked."""
    if tensor is None:
        raise InputError(
            f"the published noise model needs `{name}` of the prompt, and this host gives none"
        )
    if tensor.shape != shape:
        hint = ""
        if len(shape) == 3 and tensor.ndim == 3 and tensor.shape[1] != shape[1]:
            hint = f"; it was trained on {shape[1]} tokens"
            if shape[1] == SD35.text_tokens:
                hint += " (call the pipeline with max_sequence_length=256)"
        raise InputError(
            f"`{name}` of the prompt has shape {list(tensor.shape)}, expected {list(shape)}{hint}"
        )
    return tensor

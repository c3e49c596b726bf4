"""Tiny REAL transformers of every host of compression, with the arguments of a call."""

from __future__ import annotations

from typing import Any

import torch
from tiny import randomise
from torch import Tensor, nn

HOSTS = ("pixart", "pixart-micro", "hunyuan", "sd3", "sd35", "flux", "wan", "cogvideox")


def build_host(name: str, seed: int = 0) -> Any:
    """A transformer of the host `name`, every parameter drawn at random."""
    with torch.random.fork_rng(devices=[]):
        return randomise(_BUILDERS[name](), seed)


def arguments(name: str, height: int = 4, width: int = 6, *, batch: int = 2, seed: int = 0) -> Any:
    """Arguments of a call with height x width image tokens per frame, different in every item."""
    return _ARGUMENTS[name.split("-")[0]](_Draw(batch, seed), height, width, name)


def run(model: nn.Module, name: str, *args: Any, **kwargs: Any) -> Tensor:
    """The prediction of one call."""
    with torch.no_grad():
        return model(**arguments(name, *args, **kwargs), return_dict=False)[0]


def attentions(model: Any, name: str) -> list[list[Any]]:
    """Self-attention layers, block by block, found without the code under test."""
    blocks = [*getattr(model, "transformer_blocks", []), *getattr(model, "blocks", [])]
    blocks += getattr(model, "single_transformer_blocks", [])
    if name in ("sd3", "sd35"):
        return [[a for a in (block.attn, block.attn2) if a is not None] for block in blocks]
    return [[getattr(block, "attn1", None) or block.attn] for block in blocks]


class _Draw:
    def __init__(self, batch: int, seed: int) -> None:
        self.batch, self._generator = batch, torch.Generator().manual_seed(seed + 77)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(self.batch, *shape, generator=self._generator)


def _pixart(micro: bool = False) -> nn.Module:
    from diffusers import PixArtTransformer2DModel

    return PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=3,  # micro-conditioning divides the width by three
        cross_attention_dim=24,
        caption_channels=16,
        use_additional_conditions=micro,
    )


def _hunyuan() -> nn.Module:
    from diffusers import HunyuanDiT2DModel

    return HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=32,
        num_layers=4,
        cross_attention_dim=16,
        cross_attention_dim_t5=16,
        pooled_projection_dim=8,
        text_len=3,
        text_len_t5=4,
        use_style_cond_and_image_meta_size=False,
    )


def _sd3(dual: bool = False) -> nn.Module:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=16,
        caption_projection_dim=32,
        pooled_projection_dim=8,
        pos_embed_max_size=16,
        dual_attention_layers=(0,) if dual else (),
        qk_norm="rms_norm" if dual else None,
    )


def _flux() -> nn.Module:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
    )


def _wan() -> nn.Module:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )


def _cogvideox() -> nn.Module:
    from diffusers import CogVideoXTransformer3DModel

    return CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=16,
        num_layers=2,
        sample_width=12,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=5,
        use_rotary_positional_embeddings=True,
    )


_BUILDERS = {
    "pixart": _pixart,
    "pixart-micro": lambda: _pixart(micro=True),
    "hunyuan": _hunyuan,
    "sd3": _sd3,
    "sd35": lambda: _sd3(dual=True),
    "flux": _flux,
    "wan": _wan,
    "cogvideox": _cogvideox,
}


def _of_pixart(draw: _Draw, height: int, width: int, name: str) -> dict[str, Any]:
    size = torch.tensor([[8.0 * height, 8.0 * width]] * draw.batch)
    ratio = torch.tensor([[height / width]] * draw.batch)
    added = {"resolution": size, "aspect_ratio": ratio} if name.endswith("micro") else {}
    mask = torch.ones(draw.batch, 5)
    mask[-1, 3:] = 0
    return {
        "hidden_states": draw(4, 2 * height, 2 * width),
        "encoder_hidden_states": draw(5, 16),
        "encoder_attention_mask": mask,
        "timestep": torch.full((draw.batch,), 700),
        "added_cond_kwargs": added or {"resolution": None, "aspect_ratio": None},
    }


def _of_hunyuan(draw: _Draw, height: int, width: int, name: str) -> dict[str, Any]:
    from diffusers.models.embeddings import get_2d_rotary_pos_embed

    rotary = get_2d_rotary_pos_embed(
        16, ((0, 0), (height, width)), (height, width), use_real=True, output_type="pt"
    )
    return {
        "hidden_states": draw(4, 2 * height, 2 * width),
        "timestep": torch.full((draw.batch,), 700.0),
        "encoder_hidden_states": draw(3, 16),
        "text_embedding_mask": torch.ones(draw.batch, 3),
        "encoder_hidden_states_t5": draw(4, 16),
        "text_embedding_mask_t5": torch.ones(draw.batch, 4),
        "image_rotary_emb": rotary,
    }


def _of_sd3(draw: _Draw, height: int, width: int, name: str) -> dict[str, Any]:
    return {
        "hidden_states": draw(4, 2 * height, 2 * width),
        "encoder_hidden_states": draw(5, 16),
        "pooled_projections": draw(8),
        "timestep": torch.full((draw.batch,), 700.0),
    }


def flux_ids(height: int, width: int, image: int = 0) -> Tensor:
    """Position ids as FluxPipeline makes them."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ids = torch.stack([torch.full_like(rows, image), rows, columns], dim=-1)
    return ids.reshape(-1, 3).float()


def _of_flux(draw: _Draw, height: int, width: int, name: str) -> dict[str, Any]:
    return {
        "hidden_states": draw(height * width, 16),
        "encoder_hidden_states": draw(5, 16),
        "pooled_projections": draw(8),
        "timestep": torch.full((draw.batch,), 0.7),
        "img_ids": flux_ids(height, width),
        "txt_ids": torch.zeros(5, 3),
    }


def _of_wan(draw: _Draw, height: int, width: int, name: str) -> dict[str, Any]:
    return {
        "hidden_states": draw(4, 3, 2 * height, 2 * width),
        "timestep": torch.full((draw.batch,), 700),
        "encoder_hidden_states": draw(5, 16),
    }


def _of_cogvideox(draw: _Draw, height: int, width: int, name: str) -> dict[str, Any]:
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    rotary = get_3d_rotary_pos_embed(16, ((0, 0), (height, width)), (height, width), 3)
    return {
        "hidden_states": draw(3, 4, 2 * height, 2 * width),
        "encoder_hidden_states": draw(5, 16),
        "timestep": torch.full((draw.batch,), 700),
        "image_rotary_emb": rotary,
    }


_ARGUMENTS = {
    "pixart": _of_pixart,
    "hunyuan": _of_hunyuan,
    "sd3": _of_sd3,
    "sd35": _of_sd3,
    "flux": _of_flux,
    "wan": _of_wan,
    "cogvideox": _of_cogvideox,
}

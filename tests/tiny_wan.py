"""A tiny Wan 2.1 and 2.2 for text to video."""

from __future__ import annotations

from typing import Any

from w2sdiff.testing.parts import byte_symbols, private_randomness, randomise, t5_tokenizer

WAN: dict[str, Any] = {
    "prompt": "a red circle left of a blue square",
    "negative_prompt": "blurry",
    "height": 16,
    "width": 16,
    "num_frames": 5,
    "max_sequence_length": 48,
    "output_type": "latent",
}


def wan(seed: int) -> Any:
    """Wan 2.1."""
    return _wan(seed, transformer=_network(seed))


def wan_22(seed: int) -> Any:
    """Wan 2.2: two networks, for the noisy and the clean part."""
    networks = {"transformer": _network(seed), "transformer_2": _network(seed + 10)}
    return _wan(seed, **networks, boundary_ratio=0.875)


def _network(seed: int) -> Any:
    from diffusers import WanTransformer3DModel

    network = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    return randomise(network, seed)


def _wan(seed: int, **parts: Any) -> Any:
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline
    from transformers import UMT5Config, UMT5EncoderModel

    with private_randomness(seed):
        vae = AutoencoderKLWan(
            base_dim=3,
            z_dim=16,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
        )
        config = UMT5Config(
            vocab_size=3 + len(byte_symbols()),
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
        )
        pipe = WanPipeline(
            tokenizer=t5_tokenizer(),
            text_encoder=randomise(UMT5EncoderModel(config), seed),
            vae=randomise(vae, seed),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            **parts,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe

"""A tiny Qwen2-VL with random weights: its configuration as published, and a byte tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
BYTES = 256
SYMBOLS = BYTES + len(TOKENS)

# The keys and the nesting of the published file; the sizes are ours.
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "bos_token_id": BYTES,
    "eos_token_id": BYTES + 2,
    "vision_start_token_id": BYTES + 3,
    "vision_end_token_id": BYTES + 4,
    "vision_token_id": BYTES + 5,
    "image_token_id": BYTES + 6,
    "video_token_id": BYTES + 7,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 32768,
    "model_type": "qwen2_vl",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 1,
        "embed_dim": 32,
        "mlp_ratio": 2,
        "num_heads": 2,
        "in_chans": 3,
        "hidden_size": 64,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    },
    "vocab_size": SYMBOLS,
}


def tokenizer() -> Any:
    """A byte-level `tokenizers.Tokenizer` with Qwen2-VL's own tokens behind the bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(TOKENS))
    return inner


def base_folder(folder: Path) -> Path:
    """`config.json` and `tokenizer.json`, as the hub has them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def model(seed: int = 0) -> Any:
    """`Qwen2VLForConditionalGeneration` with random weights, large enough to matter."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    network = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**CONFIG)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in name or "ln_q" in name
            parameter.copy_(1 + 0.1 * noise if is_norm else 0.1 * noise)
    return network

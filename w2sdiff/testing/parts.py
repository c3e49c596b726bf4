"""The parts of a tiny pipeline: text encoders, byte-level tokenizers, VAEs, with random weights.

*Every* parameter is given a non-trivial value: diffusers zero-initialises output layers and gives
norms the identity, and on such a network guidance, prompts and LoRAs would do nothing, so that a
test could not fail.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

__all__ = [
    "SD_NOISE",
    "add_ip_adapter",
    "bert_encoder",
    "byte_symbols",
    "clip_encoder",
    "clip_tokenizer",
    "controlnet",
    "decoder_encoder",
    "half_mask",
    "image_embeddings",
    "ip_adapter_weights",
    "picture",
    "private_randomness",
    "qwen_vl_encoder",
    "randomise",
    "t5_encoder",
    "t5_tokenizer",
    "umt5_encoder",
    "unet",
    "vae",
    "wan_vae",
]

SD_NOISE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}

EMBEDDING = 12  # width of an image embedding


# --- weights --------------------------------------------------------------------------------------


@contextmanager
def private_randomness(seed: int) -> Iterator[None]:
    """Draw from a seed of its own, and leave torch's random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed sets every device's
        yield


def randomise(module: nn.Module, seed: int, gain: float = 1.0) -> nn.Module:
    """Give every parameter a value: matrices keep their input's variance, norms do something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float32)
            if p.ndim >= 2:
                fan_in = p[0].numel()
                embeds = "embedding" in name or "shared" in name
                p.copy_(noise if embeds else gain * noise * fan_in**-0.5)
            elif name.endswith("weight"):
                p.copy_(1 + 0.2 * noise)
            else:
                p.copy_(0.1 * noise)
    return module.eval()


# --- tokenizers and text encoders -----------------------------------------------------------------


@cache
def byte_symbols() -> tuple[str, ...]:
    """The symbols that stand for the 256 bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    return tuple(sorted(ByteLevel.alphabet()))


@cache
def _clip_tokenizer_folder() -> tempfile.TemporaryDirectory[str]:
    """A byte-level CLIP vocabulary, as a checkpoint's files: kept until the interpreter ends."""
    folder = tempfile.TemporaryDirectory(prefix="tiny-clip-")
    symbols = [*byte_symbols(), *(s + "</w>" for s in byte_symbols())]
    vocab = {s: i for i, s in enumerate([*symbols, "<|startoftext|>", "<|endoftext|>"])}
    path = Path(folder.name)
    (path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    (path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}), encoding="utf-8"
    )
    return folder


def clip_tokenizer() -> Any:
    """A real CLIPTokenizer over single bytes."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(_clip_tokenizer_folder().name)


def t5_tokenizer() -> Any:
    """A byte-level tokenizer with T5's special tokens and its closing ``</s>``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {s: i for i, s in enumerate(["<pad>", "</s>", "<unk>", *byte_symbols()])}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
        # For pipelines that write the prompt as a conversation (Z-Image).
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    )


def clip_encoder(seed: int, width: int = 32, *, projected: bool = False) -> Any:
    """A two-layer CLIP text encoder whose end token is the byte tokenizer's."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=514,
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    return randomise((CLIPTextModelWithProjection if projected else CLIPTextModel)(config), seed)


def t5_encoder(seed: int, width: int = 32) -> Any:
    """A two-layer T5 encoder over the byte tokenizer."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=3 + len(byte_symbols()),
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    return randomise(T5EncoderModel(config), seed)


def umt5_encoder(seed: int, width: int = 32) -> Any:
    """A two-layer UMT5 encoder over the byte tokenizer."""
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=3 + len(byte_symbols()),
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
    )
    return randomise(UMT5EncoderModel(config), seed)


def bert_encoder(seed: int, width: int = 32) -> Any:
    """A two-layer BERT over the byte tokenizer of T5."""
    from transformers import BertConfig, BertModel

    return randomise(BertModel(BertConfig(**_decoder_sizes(width))), seed)


def decoder_encoder(kind: Literal["Gemma2", "Llama", "Qwen3"], seed: int, width: int = 32) -> Any:
    """A two-layer language model over the byte tokenizer of T5, as pipelines use them for words."""
    import transformers

    # HiDream takes the states and the attention of a model with its head on.
    name = "LlamaForCausalLM" if kind == "Llama" else f"{kind}Model"
    more = {"num_key_value_heads": 2, "head_dim": width // 4, "attn_implementation": "eager"}
    config = getattr(transformers, f"{kind}Config")(**_decoder_sizes(width), **more)
    return randomise(getattr(transformers, name)(config), seed)


def qwen_vl_encoder(seed: int, width: int = 32) -> Any:
    """A two-layer Qwen2.5-VL over the byte tokenizer of T5; it is shown no pictures."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    rope = {"type": "mrope", "rope_type": "default", "mrope_section": [1, 1, 2]}
    text = {**_decoder_sizes(width), "num_key_value_heads": 2, "rope_scaling": rope}
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": width,
        "fullatt_block_indexes": [0],
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return randomise(Qwen2_5_VLForConditionalGeneration(config), seed)


def _decoder_sizes(width: int) -> dict[str, Any]:
    return {
        "vocab_size": 3 + len(byte_symbols()),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 1,
    }


def vae(seed: int, latent_channels: int = 4, *, flow: bool = False) -> Any:
    """A two-level AutoencoderKL (factor 2); `flow`: a shift, and no quantising convolutions."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=latent_channels,
        norm_num_groups=2,
        use_quant_conv=not flow,
        use_post_quant_conv=not flow,
        shift_factor=0.05 if flow else None,
        scaling_factor=1.5 if flow else 0.18215,
    )
    return randomise(model, seed)


def wan_vae(seed: int) -> Any:
    """An AutoencoderKLWan: factor 8 in space, 4 in time."""
    from diffusers import AutoencoderKLWan

    model = AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )
    return randomise(model, seed)


def unet(seed: int, **settings: Any) -> Any:
    """A two-level UNet2DConditionModel; `settings` win."""
    from diffusers import UNet2DConditionModel

    common: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return randomise(UNet2DConditionModel(**common | settings), seed)


def controlnet(network: Any, seed: int) -> Any:
    """A ControlNet of the shape of a UNet; its condition is a picture twice the latents' size."""
    from diffusers import ControlNetModel

    model = ControlNetModel.from_unet(
        network, conditioning_embedding_out_channels=(8, 16), load_weights_from_unet=False
    )
    return randomise(model, seed)


# --- images ---------------------------------------------------------------------------------------


def picture(seed: int, size: int = 16) -> Tensor:
    """A picture [1, 3, size, size] between 0 and 1."""
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(seed + 5))


def half_mask(size: int = 16) -> Tensor:
    """A mask [1, 1, size, size] of the left half: what inpainting paints."""
    mask = torch.zeros(1, 1, size, size)
    mask[..., : size // 2] = 1
    return mask


def add_ip_adapter(pipe: Any, seed: int, count: int = 1) -> Any:
    """Load random IP-Adapters for image embeddings by the pipeline's own loader."""
    pipe.load_ip_adapter(
        [ip_adapter_weights(pipe.unet, seed + i) for i in range(count)],
        subfolder=[""] * count,
        weight_name=[""] * count,
        image_encoder_folder=None,
    )
    return pipe


def ip_adapter_weights(network: Any, seed: int) -> dict[str, dict[str, Tensor]]:
    """In the form of the published files: a projection to four tokens, keys and values.

    The latter are numbered by the odd numbers.
    """
    words = network.config.cross_attention_dim
    generator = torch.Generator().manual_seed(seed + 31)

    def matrix(rows: int, columns: int) -> Tensor:
        noise: Tensor = torch.randn(rows, columns, generator=generator)
        return noise / math.sqrt(columns)

    state = {}
    crossing = [name for name in network.attn_processors if name.endswith("attn2.processor")]
    for number, name in enumerate(crossing):
        inner = network.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for part in ("to_k_ip", "to_v_ip"):
            state[f"{2 * number + 1}.{part}.weight"] = matrix(inner, words)
    projection = {
        "proj.weight": matrix(4 * words, EMBEDDING),
        "proj.bias": 0.1 * matrix(1, 4 * words)[0],
        "norm.weight": torch.ones(words),
        "norm.bias": torch.zeros(words),
    }
    return {"image_proj": projection, "ip_adapter": state}


def image_embeddings(seed: int, count: int = 1) -> list[Tensor]:
    """What each adapter looks at: [2, 1, width], without and with the picture."""
    generator = torch.Generator().manual_seed(seed + 17)
    return [torch.randn(2, 1, EMBEDDING, generator=generator) for _ in range(count)]

"""`load_lora`: a LoRA for a denoiser that diffusers has no adapter loader for."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2sdiff.edits.guidance import number
from w2sdiff.edits.lora import lora_layers
from w2sdiff.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

PEFT_FILE = "adapter_model.safetensors"
_OWN_NAMES = re.compile(
    r"(?P<layer>.+?)\.(?:lora_(?P<half>[AB])(?:\.\w+)?\.weight|(?P<alpha>alpha))"
)


def load_lora(pipe: Any, file: str | Path, name: str, scale: float = 1.0) -> None:
    """Load a LoRA of the denoiser by PEFT, for pipelines that diffusers has no LoRA loader for.

    PixArt, HunyuanDiT and DiT have none (diffusers 0.42). Afterwards the adapter is active at this
    weight beside those that were, and `Lora` switches it as everywhere.

    Args:
        pipe: a loaded pipeline with one denoiser.
        file: .safetensors with `<layer>.lora_A.weight` and `<layer>.lora_B.weight`, the layers
            named as in the denoiser, or after "transformer.", "unet." or "base_model.model." as
            diffusers and PEFT write them; or the folder that PEFT writes. `<layer>.alpha`, or an
            adapter_config.json beside it, holds alpha, which else is the rank.
        name: the adapter's name.
        scale: its weight.

    Raises:
        InputError: no such file, not a LoRA of this network, or the name is taken.

    Example:
        >>> from diffusers import DiffusionPipeline
        >>> from w2sdiff import shapes
        >>> pipe = DiffusionPipeline.from_pretrained(shapes.checkpoint_path("shapes-dit"))
        >>> load_lora(pipe, "nowhere.safetensors", "style")
        Traceback (most recent call last):
            ...
        w2sdiff.errors.InputError: No LoRA at nowhere.safetensors.
    """
    from peft import inject_adapter_in_model, set_peft_model_state_dict

    found = [pipe.__dict__.get(part) for part in ("unet", "transformer")]
    denoiser = next((part for part in found if part is not None), None)
    if denoiser is None:
        raise InputError(f"{type(pipe).__name__} has no unet and no transformer for a LoRA.")
    denoiser = getattr(denoiser, "_orig_mod", denoiser)
    scale = number(scale, f"weight of LoRA {name!r}")
    if name in (getattr(denoiser, "peft_config", None) or {}):
        raise InputError(f"A LoRA called {name!r} is loaded already; choose another name.")
    halves, alphas = _read(Path(file))
    config = _config(halves, alphas, _settings(Path(file)))
    _check_layers(halves, denoiser, file)
    active = {other for layer in lora_layers(denoiser) for other in layer.active_adapters}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is another adapter already
        inject_adapter_in_model(config, denoiser, adapter_name=name)
    state = {
        f"{layer}.lora_{half}.weight": weight
        for layer, pair in halves.items()
        for half, weight in pair.items()
    }
    set_peft_model_state_dict(denoiser, state, adapter_name=name)
    for layer in lora_layers(denoiser):
        layer.set_adapter([*sorted(active), name])
        if name in layer.scaling:
            _settle(layer, name)
            layer.set_scale(name, scale)
    denoiser.requires_grad_(False)


def _read(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, float]]:
    """The halves of every layer, and its alpha where the file has it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = path / PEFT_FILE if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"No LoRA at {path}.")
    halves: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"Cannot read the LoRA {path}: {error}.") from None
    for key, value in state.items():
        match = _OWN_NAMES.fullmatch(key)
        if match is None:
            raise InputError(f"{path} is no LoRA that PEFT can load: it holds {key!r}.")
        layer = re.sub(r"^(base_model\.model|transformer|unet)\.", "", match["layer"])
        if match["alpha"]:
            alphas[layer] = float(value)
        else:
            halves.setdefault(layer, {})[match["half"]] = value
    if not halves:
        raise InputError(f"{path} holds no LoRA weights.")
    return halves, alphas


def _settings(path: Path) -> dict[str, Any]:
    """What PEFT has written beside its file; nothing beside others."""
    folder = path if path.is_dir() else path.parent
    config = folder / "adapter_config.json"
    if (path.is_file() and path.name != PEFT_FILE) or not config.is_file():
        return {}
    try:
        settings: dict[str, Any] = json.loads(config.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read {config}: {error}.") from None
    if settings.get("alpha_pattern"):
        raise InputError(f"{config} has an alpha_pattern, which is not supported.")
    return settings


def _config(
    halves: Mapping[str, Mapping[str, Tensor]],
    alphas: Mapping[str, float],
    settings: Mapping[str, Any],
) -> Any:
    """With a rank and an alpha of its own for every layer, nothing depends on the common ones.

    PEFT reads its keys as patterns that the end of a name has to fit: these fit whole names only.
    """
    from peft import LoraConfig

    ranks = {layer: len(pair["A"]) for layer, pair in halves.items() if "A" in pair}
    common = settings.get("lora_alpha")
    alpha = {layer: alphas.get(layer, common or rank) for layer, rank in ranks.items()}
    return LoraConfig(
        r=1,
        lora_alpha=1,
        rank_pattern={f"^{re.escape(layer)}$": value for layer, value in ranks.items()},
        alpha_pattern={f"^{re.escape(layer)}$": value for layer, value in alpha.items()},
        target_modules=f"^({'|'.join(map(re.escape, ranks))})$",
        use_rslora=bool(settings.get("use_rslora")),
        init_lora_weights=False,
    )


def _check_layers(halves: Mapping[str, Any], denoiser: nn.Module, file: str | Path) -> None:
    called = type(denoiser).__name__
    modules = dict(denoiser.named_modules())
    for layer, pair in halves.items():
        module: Any = modules.get(layer)
        module = getattr(module, "base_layer", module)
        weight = getattr(module, "weight", None)
        if weight is None or weight.ndim < 2:
            raise InputError(f"The LoRA {file} does not fit {called}: it has no layer {layer!r}.")
        if set(pair) != {"A", "B"}:
            raise InputError(f"The LoRA {file} holds half a pair for the layer {layer!r}.")
        shape = (pair["B"].shape[0], pair["A"].shape[1])
        if pair["A"].shape[0] != pair["B"].shape[1] or shape != tuple(weight.shape[:2]):
            raise InputError(
                f"The LoRA {file} does not fit {called}: {layer!r} maps {shape[1]} to {shape[0]}, "
                f"the network's {weight.shape[1]} to {weight.shape[0]}."
            )


def _settle(layer: Any, name: str) -> None:
    """Bring a new adapter to where its layer is, in its layer's dtype and mode."""
    weight = layer.get_base_layer().weight
    for half in (layer.lora_A[name], layer.lora_B[name]):
        floating = weight.dtype if weight.is_floating_point() else None
        half.to(device=weight.device, dtype=floating)
    layer.train(layer.get_base_layer().training)

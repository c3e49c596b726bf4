"""From a training folder to the stock diffusers folders that the package carries."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from w2sdiff.errors import InputError
from w2sdiff.shapes import checkpoint_path
from w2sdiff.shapes.train.denoiser import SCHEDULES
from w2sdiff.shapes.train.lora import OF_KIND, lora_folder
from w2sdiff.shapes.train.networks import ENCODERS, NAMES, assemble, build_denoiser

__all__ = ["WEAK_STEPS", "export", "export_one", "unpack"]

# The early checkpoint of the same run, the average as it was at this step: clearly worse at equal
# guidance, and still of use.
WEAK_STEPS = {"unet": 2000, "dit": 2000}
_DENOISERS = {"unet": "unet", "dit": "transformer"}


def export(out: Path, weak_steps: dict[str, int] | None = None) -> list[Path]:
    """Write `out/<name>` for every denoiser trained in `out`; return the folders."""
    kinds = [kind for kind in NAMES if (out / "runs" / kind).is_dir()]
    if not kinds:
        raise InputError(f"no trained denoiser in {out}: run the stage 'unet' or 'dit' first")
    steps = WEAK_STEPS | (weak_steps or {})
    return [export_one(kind, out, out / NAMES[kind], weak_step=steps[kind]) for kind in kinds]


def export_one(
    kind: str, out: Path, folder: Path, *, weak_step: int, strong_step: int | None = None
) -> Path:
    """Write one stock folder in float16: the pipeline, the weak denoiser beside it, the LoRAs.

    Args:
        kind: "unet" or "dit".
        out: the training folder.
        folder: what to write; replaced if it is there.
        weak_step: the step whose averaged weights are the weak denoiser.
        strong_step: likewise for the strong one; the last one by default.

    Raises:
        InputError: the weights of a step were not kept.
    """
    kept = {int(f.stem.removeprefix("ema-")): f for f in _kept(kind, out)}
    strong_step = max(kept) if strong_step is None else strong_step
    if missing := {weak_step, strong_step} - set(kept):
        raise InputError(
            f"the {kind}'s weights at step {missing.pop()} were not kept: choose from "
            + ", ".join(map(str, sorted(kept)))
        )
    if folder.is_dir():
        shutil.rmtree(folder)
    strong, weak = (_load(kind, kept[step]) for step in (strong_step, weak_step))
    pipe = assemble(kind, out, strong).to(dtype=torch.float16)
    pipe.save_pretrained(folder, safe_serialization=True)
    weak.half().save_pretrained(folder / f"{_DENOISERS[kind]}_weak", safe_serialization=True)
    loras = lora_folder(kind, out)
    if loras.is_dir():
        (folder / "loras").mkdir()
        for name in OF_KIND[kind]:
            shutil.copy(loras / f"{name}.safetensors", folder / "loras")
    _polish(folder)
    return folder


def unpack(out: Path) -> None:
    """Make a training folder of the embedded checkpoints: LoRAs can be trained in it.

    It has the codec, the text encoders and the strong denoisers, in the float16 they come in. What
    is in `out` already stays.
    """
    for kind, name in NAMES.items():
        folder, text = checkpoint_path(name), out / "text" / ENCODERS[kind]
        pairs = [("vae", out / "vae"), *((p, text / p) for p in ("tokenizer", "text_encoder"))]
        for part, target in pairs:
            if not target.exists():
                shutil.copytree(folder / part, target)
        target = out / "runs" / kind / f"ema-{SCHEDULES[kind].steps:06d}.safetensors"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            weights = load_file(folder / _DENOISERS[kind] / "diffusion_pytorch_model.safetensors")
            save_file({n: t.float() for n, t in weights.items()}, target)


def _kept(kind: str, out: Path) -> list[Path]:
    return list((out / "runs" / kind).glob("ema-*.safetensors"))


def _load(kind: str, file: Path) -> Any:
    denoiser = build_denoiser(kind)
    denoiser.load_state_dict(load_file(file))
    return denoiser.eval()


def _polish(folder: Path) -> None:
    """Make the folder the same for everybody who loads it.

    No configuration names the folder it was made in. The text encoder's says that its weights
    become float32: the files hold float16 to be small, and transformers would compute in that type
    too, unlike diffusers, which loads everything as float32 unless told otherwise. And the
    tokenizer is the fast one by name, and CLIP's weights have the prefix that they had before
    transformers 5: both are read by the older and the newer versions.
    """
    for file in folder.glob("*/config.json"):
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        if file.parent.name == "text_encoder":
            config["dtype"] = "float32"
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    file = folder / "tokenizer" / "tokenizer_config.json"
    config = json.loads(file.read_text())
    for unportable in ("backend", "extra_special_tokens", "is_local", "local_files_only"):
        config.pop(unportable, None)
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    file = folder / "model_index.json"
    index = json.loads(file.read_text())
    index["tokenizer"][1] = index["tokenizer"][1].removesuffix("Fast") + "Fast"
    file.write_text(json.dumps(index, indent=2) + "\n")
    if index["text_encoder"][1] == "CLIPTextModel":
        file = folder / "text_encoder" / "model.safetensors"
        weights = {
            f"text_model.{n.removeprefix('text_model.')}": t for n, t in load_file(file).items()
        }
        save_file(weights, file, metadata={"format": "pt"})
    for written in folder.rglob("*.safetensors"):
        written.chmod(0o644)

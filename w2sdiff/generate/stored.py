"""What is stored of a picture: a PNG that says how it was made, and the facts of its record."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from w2sdiff.generate.draw import Drawn
from w2sdiff.generate.models import Model
from w2sdiff.generate.recipe import Recipe
from w2sdiff.generate.settings import SCHEDULERS, Settings
from w2sdiff.imaging import parameters_text, png_bytes
from w2sdiff.jobs import Done, Failed

__all__ = ["machine", "metadata_of", "outcome_of", "png_of"]


def outcome_of(
    recipe: Recipe, key: str, drawn: Drawn, file_name: str, facts: Mapping[str, Any]
) -> Done | Failed:
    """What the ledger keeps of a drawn picture: the file and its facts, or why there is none.

    Args:
        recipe: how it was made.
        key: of its item.
        drawn: the picture.
        file_name: plain, unique in the folder.
        facts: what else to keep: which arm it was made for, the id of its prompt.
    """
    facts = {
        **facts,
        "evaluations": drawn.evaluations,
        "calls": drawn.calls,
        "seconds": drawn.seconds,
        "batch": len(drawn.group),
        "notes": list(drawn.notes),
        "verdict": asdict(drawn.verdict) if drawn.verdict else None,
        "noise": drawn.noise,
        "pixels": _pixels_sha256(drawn),
        "peak_mb": drawn.peak_mb,
    }
    if drawn.image is None:
        return Failed(drawn.reason or "no picture", facts)
    metadata = metadata_of(recipe, key, drawn)
    return Done({file_name: png_of(metadata, drawn, recipe.model, recipe.settings)}, facts)


def metadata_of(recipe: Recipe, key: str, drawn: Drawn) -> dict[str, Any]:
    """Everything needed to make a picture again, and what it cost.

    Times are in the ledger's record, so that equal pictures are equal files.
    """
    settings, model, shot = recipe.settings, recipe.model, drawn.group[drawn.place]
    return {
        "schema": 1,
        "key": key,
        "prompt": shot.prompt,
        "seed": shot.seed,
        "method": model.portable(recipe.method_json),
        "model": {
            "name": model.name,
            "pipeline": model.pipeline,
            "variant": model.variant,
            "revision": model.revision,
            "commit": model.commit,
            "sha256": model.sha256,
        },
        "settings": model.portable(settings.to_json()),
        "decides": recipe.decides["settings"],
        "group": [shot.to_json() for shot in drawn.group],
        "place": drawn.place,
        "versions": recipe.decides["versions"],
        "machine": machine(settings),
        "cost": {"evaluations": drawn.evaluations, "calls": drawn.calls, "batch": len(drawn.group)},
    }


def png_of(metadata: dict[str, Any], drawn: Drawn, model: Model, settings: Settings) -> bytes:
    """The file of a picture; says how it was made in our words and in those of other tools."""
    assert drawn.image is not None
    sampler = SCHEDULERS[settings.scheduler] if settings.scheduler else model.scheduler
    parameters = {
        "Steps": settings.steps,
        "Sampler": sampler.removesuffix("Scheduler"),
        "CFG scale": settings.guidance,
        "Seed": metadata["seed"],
        "Size": f"{drawn.image.width}x{drawn.image.height}",
        "Model hash": model.sha256[:10],
        "Model": model.name,
        "Method": metadata["method"]["method"],
        "Evaluations": drawn.evaluations,
        "Version": f"w2sdiff {metadata['versions']['w2sdiff']}",
    }
    text = parameters_text(metadata["prompt"], settings.negative, parameters)
    return png_bytes(drawn.image, metadata, text)


def machine(settings: Settings) -> dict[str, Any]:
    """What of this machine may change the last bits of a picture."""
    import torch

    device = platform.processor() or platform.machine()
    if settings.device.startswith("cuda"):
        device = torch.cuda.get_device_name(settings.device)
    return {"device": device, "threads": torch.get_num_threads()}


def _pixels_sha256(drawn: Drawn) -> str | None:
    """Tells equal pictures whose files differ in what they say about themselves."""
    if drawn.image is None:
        return None
    return hashlib.sha256(repr(drawn.image.size).encode() + drawn.image.tobytes()).hexdigest()

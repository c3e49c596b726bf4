"""Draw what is planned, into a folder that says what is done."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from w2sdiff.errors import InputError
from w2sdiff.generate.draw import Drawn, Studio
from w2sdiff.generate.models import Model
from w2sdiff.generate.plan import Picture, Plan, slug
from w2sdiff.generate.settings import SCHEDULERS, Settings
from w2sdiff.imaging import Cell, grid, parameters_text, png_bytes
from w2sdiff.jobs import (
    Done,
    Event,
    Failed,
    Ledger,
    Record,
    Summary,
    Task,
    digest,
    run_local,
    write_whole,
)

__all__ = ["draw_grids", "generate", "machine", "metadata_of", "png_of"]


def generate(
    plan: Plan,
    ledger: Ledger,
    *,
    on_picture: Callable[[Picture, Event], None] = lambda _picture, _event: None,
    on_step: Callable[[int, int], None] = lambda _done, _total: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Summary:
    """Draw the pictures of a plan that are not there yet.

    Args:
        plan: what to draw.
        ledger: where, and what is there.
        on_picture: told about each picture that was found, made, or failed.
        on_step: told after every denoising step.
        stopping: asked before each batch; once it says yes, the run ends after the batch in hand.

    Raises:
        InputError: the input is wrong for every picture, or the folder cannot be written.
        UnsupportedError: the pipeline cannot do what the method asks for.
    """
    pictures = {task.key: group for task, group in plan.batches}

    with Studio(plan.model, plan.settings, on_step=on_step) as studio:

        def work(task: Task) -> Sequence[Done | Failed]:
            group = pictures[task.key]
            drawn = studio.draw(group[0].arm.method, [picture.shot for picture in group])
            entries = zip(task.items, group, drawn, strict=True)
            return [_outcome(plan, item.key, picture, one) for item, picture, one in entries]

        return run_local(
            ledger,
            [task for task, _ in plan.batches],
            work,
            on_event=lambda event: on_picture(plan.pictures[event.item.key], event),
            stopping=stopping,
        )


def draw_grids(plan: Plan, ledger: Ledger) -> list[Path]:
    """Write one labelled sheet per prompt: a column per arm, a row per seed.

    What is not there is an empty frame.

    Returns:
        The files that were written; none for a prompt of which nothing is there.
    """
    written = []
    for number, row in enumerate(plan.rows):
        sheet = {
            (seed, arm.label): plan.keys[arm.label, number, seed]
            for seed in plan.seeds
            for arm in plan.arms
        }
        records = {place: ledger.get(key) for place, key in sheet.items()}
        if not any(record and record.files for record in records.values()):
            continue
        cells = [
            [_cell(ledger, arm.label, seed, records[seed, arm.label]) for arm in plan.arms]
            for seed in plan.seeds
        ]
        keys = sorted(sheet.values())
        name = f"{slug(row.text)}-compare-{digest(keys)[:8]}.png"
        path = ledger.folder / name
        if path in written:
            continue
        with ledger.hold(name) as held:
            if held:  # or else another process is writing the same
                picture = grid(cells, title=row.text)
                write_whole(path, png_bytes(picture, {"schema": 1, "grid": keys}))
        written.append(path)
    return written


def metadata_of(plan: Plan, key: str, picture: Picture, drawn: Drawn) -> dict[str, Any]:
    """Everything needed to make a picture again, and what it cost.

    Times are in the ledger's record, so that equal pictures are equal files.
    """
    settings, model = plan.settings, plan.model
    return {
        "schema": 1,
        "key": key,
        "prompt": picture.shot.prompt,
        "seed": picture.shot.seed,
        "method": model.portable(plan.method_json(picture.arm)),
        "model": {
            "name": model.name,
            "pipeline": model.pipeline,
            "variant": model.variant,
            "revision": model.revision,
            "commit": model.commit,
            "sha256": model.sha256,
        },
        "settings": model.portable(settings.to_json()),
        "decides": settings.decides(),
        "group": [shot.to_json() for shot in drawn.group],
        "place": drawn.place,
        "versions": plan.versions,
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


def _outcome(plan: Plan, key: str, picture: Picture, drawn: Drawn) -> Done | Failed:
    facts: dict[str, Any] = {
        "arm": picture.arm.label,
        "prompt_id": picture.row.id,
        "evaluations": drawn.evaluations,
        "calls": drawn.calls,
        "seconds": drawn.seconds,
        "batch": len(drawn.group),
        "notes": list(drawn.notes),
        "verdict": asdict(drawn.verdict) if drawn.verdict else None,
    }
    if drawn.image is None:
        return Failed(drawn.reason or "no picture", facts)
    metadata = metadata_of(plan, key, picture, drawn)
    data = png_of(metadata, drawn, plan.model, plan.settings)
    return Done({plan.file_name(picture, key): data}, facts)


def _cell(ledger: Ledger, label: str, seed: int, record: Record | None) -> Cell:
    from PIL import Image

    title = f"{label}, seed {seed}"
    if record is None:
        return Cell(None, title, ["not made"])
    if not record.files:
        return Cell(None, title, [f"failed: {record.reason}"])
    facts = record.facts
    lines = [f"{facts['evaluations']} evaluations, {facts['seconds']:.2f} s"]
    if verdict := facts.get("verdict"):
        lines.append("obeyed" if verdict["obeyed"] else f"not obeyed: {verdict['why']}")
    try:
        with Image.open(ledger.folder / next(iter(record.files))) as image:
            return Cell(image.convert("RGB"), title, lines)
    except OSError as error:
        raise InputError(f"cannot read a picture of the grid: {error}") from error

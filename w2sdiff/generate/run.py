"""Draw what is planned, into a folder that says what is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from w2sdiff.errors import InputError
from w2sdiff.generate.draw import Drawn, Studio
from w2sdiff.generate.plan import Picture, Plan, slug
from w2sdiff.generate.stages import Stage
from w2sdiff.generate.stored import outcome_of
from w2sdiff.imaging import Cell, grid, png_bytes
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

__all__ = ["draw_grids", "generate"]


def generate(
    plan: Plan,
    ledger: Ledger,
    *,
    on_picture: Callable[[Picture, Event], None] = lambda _picture, _event: None,
    on_step: Callable[[int, int], None] = lambda _done, _total: None,
    on_stage: Callable[[Stage], None] | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Summary:
    """Draw the pictures of a plan that are not there yet.

    Args:
        plan: what to draw.
        ledger: where, and what is there.
        on_picture: told about each picture that was found, made, or failed.
        on_step: told after every denoising step.
        on_stage: told after every stage how much memory it took; None: nothing is measured.
        stopping: asked before each batch; once it says yes, the run ends after the batch in hand.

    Raises:
        InputError: the input is wrong for every picture, or the folder cannot be written.
        UnsupportedError: the pipeline cannot do what the method asks for.
    """
    pictures = {task.key: group for task, group in plan.batches}

    with Studio(plan.model, plan.settings, on_step=on_step, on_stage=on_stage) as studio:

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


def _outcome(plan: Plan, key: str, picture: Picture, drawn: Drawn) -> Done | Failed:
    return outcome_of(
        plan.recipes[picture.arm.label],
        key,
        drawn,
        plan.file_name(picture, key),
        {"arm": picture.arm.label, "prompt_id": picture.row.id},
    )


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

"""Make a picture again from what it says about itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2sdiff.edits import Checkpoint
from w2sdiff.edits.hub import is_here
from w2sdiff.errors import InputError
from w2sdiff.generate.draw import Shot, Studio
from w2sdiff.generate.models import Model, find_model
from w2sdiff.generate.recipe import versions
from w2sdiff.generate.settings import Settings
from w2sdiff.generate.stored import machine, png_of
from w2sdiff.imaging import open_image, read_metadata
from w2sdiff.methods import Method, from_json

__all__ = ["Again", "make_again"]

_FILES = ("image", "control_image", "image_prompts", "loras")  # of settings, by their hashes


@dataclass(frozen=True)
class Again:
    """A picture made again.

    Attributes:
        data: the new file; the same bytes as the old one if nothing differs.
        pixels_changed: how many pixels differ; None if the size does.
        differences: what is not as it was then: weights, versions, machine.
    """

    data: bytes
    pixels_changed: int | None
    differences: tuple[str, ...]


def make_again(
    path: Path,
    *,
    model: str | None = None,
    device: str | None = None,
    on_step: Callable[[int, int], None] = lambda _done, _total: None,
) -> Again:
    """Make the picture in a PNG file again, in the batch it was made in.

    Nothing is downloaded on the word of a picture: a hub model must be in the local cache, or be
    named here.

    Args:
        path: a PNG file of `generate`.
        model: where its model is now; None for where it was.
        device: another device than the one it was made on.
        on_step: told after every denoising step.

    Raises:
        InputError: the file does not say how it was made, or what it names is not here.
        UnsupportedError: this installation cannot make it.
    """
    then = read_metadata(path)
    if "grid" in then:
        raise InputError(f"{path} is a grid of pictures; give one of the pictures")
    try:
        if then["schema"] != 1:
            raise InputError(f"{path} was made by a later version of w2sdiff")
        found = _model(then["model"], model)
        settings = Settings.from_json(
            found.local({**then["settings"], "device": device or then["settings"]["device"]})
        ).on_device(small=found.is_shapes)
        method = _method(found.local(then["method"]))
        shots = [Shot(**shot) for shot in then["group"]]
        place, threads = int(then["place"]), int(then["machine"]["threads"])
        if not 0 <= place < len(shots) or not 1 <= threads <= 4096:
            raise ValueError("numbers out of range")
        now = {
            **then,
            "model": {**then["model"], "sha256": found.sha256},
            "decides": settings.decides(),
            "versions": versions(),
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"what {path} says about itself is damaged: {error!r}") from error
    with _threads(threads), Studio(found, settings, on_step=on_step) as studio:
        drawn = studio.draw(method, shots)[place]
        now["machine"] = machine(settings)
    if drawn.image is None:
        raise InputError(f"the picture cannot be made again here: {drawn.reason}")
    now["cost"] = {
        "evaluations": drawn.evaluations,
        "calls": drawn.calls,
        "batch": len(drawn.group),
    }
    return Again(
        data=png_of(now, drawn, found, settings),
        pixels_changed=_changed(open_image(path), drawn.image),
        differences=tuple(_differences(then, now)),
    )


def _model(then: Mapping[str, Any], name: str | None) -> Model:
    if name is not None:
        return find_model(name, variant=then["variant"])
    revision = then["commit"] or then["revision"]
    try:
        return find_model(then["name"], variant=then["variant"], revision=revision, download=False)
    except InputError as error:
        raise InputError(f"{error}; say where it is with --model") from error


def _method(data: Mapping[str, Any]) -> Method:
    for role in data.values():
        for edit in role if isinstance(role, list) else ():
            if edit["edit"] == Checkpoint.kind and not is_here(edit["path"]):
                raise InputError(f"the checkpoint {edit['path']} is not here")
    return from_json(data)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Compute with as many threads as then: sums are split among them, which shows in the bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _changed(old: Any, new: Any) -> int | None:
    import numpy as np

    if old.size != new.size:
        return None
    return int((np.asarray(old) != np.asarray(new)).any(axis=2).sum())


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """In words, what decides pixels and is not as it was."""
    if then["model"]["sha256"] != now["model"]["sha256"]:
        yield f"the weights of {now['model']['name']} are others"
    for group in ("versions", "machine"):
        names = sorted({*then[group], *now[group]})
        for name in names:
            old, new = then[group].get(name), now[group].get(name)
            if old != new:
                yield f"{name}: {old} then, {new} now"
    for name in sorted({*then["decides"], *now["decides"]}):
        if then["decides"].get(name) != now["decides"].get(name):
            what = "file" if name in _FILES else "value"
            yield f"another {what} for {name}"

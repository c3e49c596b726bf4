"""Read collected data: check it is whole, split it by prompt, stream it in shuffled order."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2sdiff.core2.collect import MANIFEST
from w2sdiff.core2.noise_model import Given, Host
from w2sdiff.core2.shard import PER_PROMPT, PER_STEP
from w2sdiff.errors import InputError
from w2sdiff.jobs import Ledger, Record

__all__ = ["Batch", "Collected", "Shard"]


@dataclass(frozen=True)
class Batch:
    """Some steps of some prompts.

    Attributes:
        c: [B, C, ...] conditional predictions, float32.
        target: same shape, what is learned.
        given: what goes with them; alpha and sigma are [B].
        step: [B] numbers of the steps.
    """

    c: Tensor
    target: Tensor
    given: Given
    step: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device."""
        given = self.given.map(lambda _, value: value.to(device))
        return Batch(self.c.to(device), self.target.to(device), given, self.step.to(device))


@dataclass(frozen=True)
class Shard:
    """A file of the folder, as its record has it.

    Attributes:
        path: of the file.
        prompts: of the kept pictures, in order.
        steps: stored of each.
    """

    path: Path
    prompts: tuple[str, ...]
    steps: int

    def read(self) -> dict[str, Tensor]:
        """All of it, with the negative prompt spread over the prompts again.

        Raises:
            InputError: the file is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            found: dict[str, Tensor] = load_file(self.path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"the shard {self.path} is damaged: {error}") from error
        for name in PER_PROMPT:
            if name in found and len(found[name]) == 1:
                found[name] = found[name].expand(len(self.prompts), *found[name].shape[1:])
        return found


@dataclass(frozen=True)
class Collected:
    """A folder of collected data, or a part of it.

    Attributes:
        folder: where it lies.
        host: the network it is from.
        shards: the files.
        about: the folder's manifest.
        part: "train" or "validation", and the share of the latter; None: all.
        seconds: that collecting took, over all processes.

    Example:
        >>> Collected.open(Path("nowhere"))
        Traceback (most recent call last):
        w2sdiff.errors.InputError: nowhere is no folder of collected data ...
    """

    folder: Path
    host: Host
    shards: tuple[Shard, ...]
    about: Mapping[str, Any]
    part: tuple[str, float] | None = None
    seconds: float = 0.0

    @classmethod
    def open(cls, folder: Path) -> Collected:
        """Look at a folder; nothing of the data itself is read.

        Raises:
            InputError: it is no such folder, or a shard is missing, cut off or damaged.
        """
        path = folder / MANIFEST
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            prompts, size = int(about["prompts"]), int(about["shard"])
            items = set(about.get("items", ()))
        except OSError as error:
            raise InputError(
                f"{folder} is no folder of collected data (it has no {MANIFEST}); "
                "`w2sdiff core2 collect` makes one"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged: {error!r}") from error
        done = [record for record in Ledger(folder).records() if record.status == "done"]
        records = [record for record in done if not items or record.key in items]
        for record in records:
            _check(folder, record)
        expected = -(-prompts // size)
        if len(records) < expected:
            raise InputError(
                f"{folder} has {len(records)} of {expected} shards: some are missing, failed or "
                "not made yet; run the same `w2sdiff core2 collect` again"
            )
        shards = [_shard(folder, record) for record in records]
        kept = [shard for shard in shards if shard.prompts]
        if not kept:
            raise InputError(f"{folder} holds no picture that was worth keeping")
        seconds = sum(float(record.facts.get("seconds", 0)) for record in records)
        return cls(folder, _host(kept[0].path), tuple(kept), about, seconds=seconds)

    def split(self, validation: float) -> tuple[Collected, Collected]:
        """Training and validation parts; every prompt, however often it occurs, is in one.

        Args:
            validation: share of the prompts, in (0, 1); which ones is a function of their text.

        Raises:
            InputError: the share is out of range, or one part would be empty.
        """
        if not 0 < validation < 1:
            raise InputError(f"the share of validation lies in (0, 1), got {validation}")
        parts = tuple(
            dataclasses.replace(self, part=(which, validation)) for which in ("train", "validation")
        )
        for part in parts:
            if not len(part):
                raise InputError(
                    f"no prompt is left for {part.part[0] if part.part else 'all'}: collect more "
                    f"prompts, or choose another share than {validation}"
                )
        return parts[0], parts[1]

    def __len__(self) -> int:
        """Number of stored steps."""
        return sum(len(self.rows(shard)) * shard.steps for shard in self.shards)

    def batches(
        self, size: int, *, seed: int, epoch: int = 0, skip: int = 0, window: int = 16
    ) -> Iterator[Batch]:
        """One pass over the data, shuffled: shards among each other, and steps within a window.

        The order is a function of the seed and the epoch alone, so that a stopped training goes on
        where it was. Memory holds `window` shards.

        Args:
            size: steps per batch; what is left over at the end of a window is dropped.
            seed: of the order.
            epoch: number of the pass.
            skip: batches to leave out at the start; shards of which nothing is left are not read.
            window: shards whose steps are mixed.
        """
        generator = torch.Generator().manual_seed((seed << 20) + epoch)
        order = torch.randperm(len(self.shards), generator=generator).tolist()
        for start in range(0, len(order), window):
            shards = [self.shards[i] for i in order[start : start + window]]
            count = sum(len(self.rows(shard)) * shard.steps for shard in shards)
            mixed = torch.randperm(count, generator=generator)
            if skip >= count // size:
                skip -= count // size
                continue
            steps = self._read(shards)
            for at in range(skip * size, count - size + 1, size):
                yield _chosen(steps, mixed[at : at + size])
            skip = 0

    def batches_per_epoch(self, size: int, *, seed: int, epoch: int, window: int = 16) -> int:
        """How many batches `batches` gives."""
        generator = torch.Generator().manual_seed((seed << 20) + epoch)
        order = torch.randperm(len(self.shards), generator=generator).tolist()
        counts = [len(self.rows(self.shards[i])) * self.shards[i].steps for i in order]
        return sum(
            sum(counts[start : start + window]) // size for start in range(0, len(counts), window)
        )

    def read(self, limit: int | None = None) -> Iterator[Batch]:
        """Every step in the order of the files, a batch per shard, up to `limit` steps."""
        for shard in self.shards:
            if limit is not None and limit <= 0:
                return
            rows = self.rows(shard)
            if rows:
                batch = _chosen(self._read([shard]), torch.arange(len(rows) * shard.steps))
                yield batch
                limit = None if limit is None else limit - len(batch.c)

    def rows(self, shard: Shard) -> list[int]:
        """Which prompts of a shard belong to this part."""
        if self.part is None:
            return list(range(len(shard.prompts)))
        which, share = self.part
        held = [_share(text) < share for text in shard.prompts]
        return [i for i, is_held in enumerate(held) if is_held == (which == "validation")]

    def _read(self, shards: Sequence[Shard]) -> dict[str, Tensor]:
        """The steps of several shards under one number each."""
        parts: dict[str, list[Tensor]] = {}
        for shard in shards:
            rows = self.rows(shard)
            if not rows:
                continue
            tensors, n = shard.read(), len(rows)
            for name in PER_STEP:
                parts.setdefault(name, []).append(tensors[name][rows].flatten(0, 1))
            for name in PER_PROMPT:
                if name in tensors:
                    spread = tensors[name][rows].repeat_interleave(shard.steps, 0)
                    parts.setdefault(name, []).append(spread)
            for name in ("alpha", "sigma", "step"):
                parts.setdefault(name, []).append(tensors[name].repeat(n))
            if "positions" in tensors:
                parts["positions"] = [tensors["positions"]]
        return {
            name: _padded(tensors) if name in ("text", "mask") else torch.cat(tensors)
            for name, tensors in parts.items()
        }


def _padded(tensors: list[Tensor]) -> Tensor:
    """Texts of different length in one tensor; what is added is masked where there is a mask."""
    longest = max(tensor.shape[1] for tensor in tensors)
    wide = [
        torch.nn.functional.pad(
            tensor, [0] * (2 * (tensor.ndim - 2)) + [0, longest - tensor.shape[1]]
        )
        for tensor in tensors
    ]
    return torch.cat(wide)


def _chosen(steps: Mapping[str, Tensor], rows: Tensor) -> Batch:
    found = {name: steps[name][rows].float() for name in ("c", "target", "x", "alpha", "sigma")}
    given = {
        name: steps[name][rows] if name == "mask" else steps[name][rows].float()
        for name in PER_PROMPT
        if name in steps
    }
    given["positions"] = steps.get("positions")  # type: ignore[assignment]
    return Batch(
        found["c"],
        found["target"],
        Given(x=found["x"], alpha=found["alpha"], sigma=found["sigma"], **given),  # type: ignore[arg-type]
        steps["step"][rows].long(),
    )


def _share(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _check(folder: Path, record: Record) -> None:
    for name, facts in record.files.items():
        path = folder / name
        if not path.is_file():
            raise InputError(
                f"the shard {path} is missing; run the same `w2sdiff core2 collect` again"
            )
        if path.stat().st_size != facts["bytes"]:
            raise InputError(
                f"the shard {path} is cut off ({path.stat().st_size} of {facts['bytes']} bytes); "
                "run the same `w2sdiff core2 collect` again"
            )


def _shard(folder: Path, record: Record) -> Shard:
    [name] = record.files
    about = _about(folder / name)
    prompts = tuple(shot["prompt"] for shot in about["shots"])
    return Shard(folder / name, prompts, int(record.facts["steps"]))


def _host(path: Path) -> Host:
    return Host(**_about(path)["host"])


def _about(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {})["w2sdiff"])
            return about
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(f"the shard {path} is damaged: {error}") from error

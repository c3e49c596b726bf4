"""The curves of a training: a CSV that grows, and a picture at the end."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["Curves"]


class Curves:
    """`curves.csv` and `curves.png` of a folder: loss and validation errors by step.

    Args:
        folder: where they are.
        errors: names of the errors that a validation gives.
        what: what the numbers are, for the picture.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     curves = Curves(Path(folder), ["x0"], "squared error")
        ...     curves.add(1, 0.5, 0.9, {"x0": 0.8})
        ...     curves.read()
        [{'step': '1', 'seconds': '0.5', 'loss': '0.9', 'x0': '0.8'}]
    """

    def __init__(self, folder: Path, errors: Sequence[str], what: str) -> None:
        self.csv = folder / "curves.csv"
        self.png = folder / "curves.png"
        self._numbers = ("loss", *errors)
        self._what = what

    def add(
        self, step: int, seconds: float, loss: float | None, errors: Mapping[str, float]
    ) -> None:
        """Append a line; what was not measured is empty."""
        new = not self.csv.is_file()
        found = {"loss": loss, **errors}
        numbers = [found.get(name) for name in self._numbers]
        with self.csv.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(self._columns)
            row = ["" if number is None else f"{number:.6g}" for number in numbers]
            writer.writerow([step, round(seconds, 1), *row])

    def cut(self, step: int) -> None:
        """Drop what lies after a step that the training goes back to."""
        kept = [row for row in self.read() if int(row["step"]) <= step]
        with self.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(kept)

    def read(self) -> list[dict[str, str]]:
        """All lines."""
        if not self.csv.is_file():
            return []
        with self.csv.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def draw(self) -> None:
        """All of them over the steps, as a PNG."""
        from matplotlib.figure import Figure

        rows = self.read()
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for name in self._numbers:
            there = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
            if there:
                marker = "" if name == "loss" else "."
                axes.plot(*zip(*there, strict=True), marker=marker, lw=0.9, label=name)
        axes.set(xlabel="step", ylabel=self._what, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(self.png, dpi=110)

    @property
    def _columns(self) -> tuple[str, ...]:
        return ("step", "seconds", *self._numbers)

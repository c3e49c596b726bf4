"""The curves of a training: a CSV that grows, and a picture at the end."""

from __future__ import annotations

import csv
from pathlib import Path

from w2sdiff.core2.validate import Validation

__all__ = ["Curves"]

_COLUMNS = ("step", "seconds", "loss", "relative", "prediction", "x0")


class Curves:
    """`curves.csv` and `curves.png` of a folder."""

    def __init__(self, folder: Path) -> None:
        self.csv = folder / "curves.csv"
        self.png = folder / "curves.png"

    def add(self, step: int, seconds: float, loss: float, found: Validation | None) -> None:
        """Append a line; the validation's errors are empty where there was none."""
        new = not self.csv.is_file()
        errors = found.errors if found else {}
        row = [step, round(seconds, 1), f"{loss:.6g}"]
        row += [f"{errors[name]:.6g}" if name in errors else "" for name in _COLUMNS[3:]]
        with self.csv.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(_COLUMNS)
            writer.writerow(row)

    def cut(self, step: int) -> None:
        """Drop what lies after a step that the training goes back to."""
        kept = [row for row in self.read() if int(row["step"]) <= step]
        with self.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, _COLUMNS)
            writer.writeheader()
            writer.writerows(kept)

    def read(self) -> list[dict[str, str]]:
        """All lines."""
        if not self.csv.is_file():
            return []
        with self.csv.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def draw(self) -> None:
        """Loss and validation errors over the steps, as a PNG."""
        from matplotlib.figure import Figure

        rows = self.read()
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(
            [int(r["step"]) for r in rows], [float(r["loss"]) for r in rows], lw=0.8, label="loss"
        )
        for name in _COLUMNS[3:]:
            there = [(int(r["step"]), float(r[name])) for r in rows if r[name]]
            axes.plot(*zip(*there, strict=True), marker=".", label=f"validation, {name}")
        axes.set(xlabel="step", ylabel="error (1: nothing learned)", ylim=(0, 1.2))
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(self.png, dpi=110)

"""The curves of a tuning: a CSV that grows, and a picture of it."""

from __future__ import annotations

import csv
from pathlib import Path

__all__ = ["Curves"]

_COLUMNS = ("step", "seconds", "loss", "validation")


class Curves:
    """`curves.csv` and `curves.png` of a folder."""

    def __init__(self, folder: Path) -> None:
        self.csv = folder / "curves.csv"
        self.png = folder / "curves.png"

    def add(self, step: int, seconds: float, loss: float | None, error: float | None) -> None:
        """Append a line; what was not measured is empty."""
        new = not self.csv.is_file()
        numbers = ["" if value is None else f"{value:.6g}" for value in (loss, error)]
        with self.csv.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(_COLUMNS)
            writer.writerow([step, round(seconds, 1), *numbers])

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
        """Both errors over the steps, as a PNG."""
        from matplotlib.figure import Figure

        rows = self.read()
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for name, marker in (("loss", ""), ("validation", ".")):
            there = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
            if there:
                axes.plot(*zip(*there, strict=True), marker=marker, lw=0.9, label=name)
        axes.set(xlabel="step", ylabel="squared error of the prediction")
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(self.png, dpi=110)

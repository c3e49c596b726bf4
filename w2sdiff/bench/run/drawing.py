"""The work of a run's drawings, for any engine: a batch in, one picture or reason per item out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from w2sdiff.bench.plan.design import Design
from w2sdiff.bench.plan.drawings import Drawing, Drawings, Shard
from w2sdiff.bench.plan.experiment import Arm
from w2sdiff.errors import UnsupportedError
from w2sdiff.generate import Drawn, Shot, Studio, outcome_of, slug
from w2sdiff.jobs import Done, Failed, Job, Ledger, Task

__all__ = ["DrawWork", "drawing_job"]


class DrawWork:
    """Draws batches, whatever their arm; a pipeline stays loaded as long as it serves.

    An arm that its pipeline cannot do fails, picture by picture, and the other arms go on.

    Args:
        on_step: told after every denoising step: steps done, steps in all.
    """

    def __init__(self, on_step: Callable[[int, int], None] = lambda _done, _total: None) -> None:
        self._on_step = on_step
        self._studio: Studio | None = None

    def studio(self, arm: Arm) -> Studio:
        """A studio that draws as this arm wants it, apart from the method."""
        if self._studio is None:
            self._studio = Studio(arm.model, arm.settings, on_step=self._on_step)
        self._studio.use(arm.model, arm.settings)
        return self._studio

    def __call__(self, task: Task) -> list[Done | Failed]:
        """Draw one batch."""
        assert isinstance(task, Drawing)
        try:
            drawn = self.draw(task.arm, task.shots)
        except UnsupportedError as error:
            return [Failed(str(error))] * len(task.items)
        return [
            outcome_of(
                task.arm.recipe,
                item.key,
                one,
                f"{slug(shot.prompt) or 'picture'}-{task.arm.method.kind}-{item.key[:16]}.png",
                {"arm": task.arm.name, "prompt_id": name},
            )
            for item, shot, name, one in zip(task.items, task.shots, task.ids, drawn, strict=True)
        ]

    def draw(self, arm: Arm, shots: tuple[Shot, ...]) -> list[Drawn]:
        """Draw some shots together as an arm does."""
        return self.studio(arm).draw(arm.method, shots)

    def close(self) -> None:
        """Let go of the pipeline: a scorer may need the memory."""
        if self._studio is not None:
            self._studio.close()


def drawing_job(arms: tuple[Arm, ...], design: Design, folder: Path, shard: Shard | None) -> Job:
    """The drawings of a run as a job that any process can build for itself.

    Args:
        arms: rivals included.
        design: what is drawn.
        folder: of the ledger of pictures.
        shard: only this part of them.
    """
    return Job(Ledger(folder), Drawings(arms, design, shard), DrawWork())

"""One batch through a scorer: what is bad is found and named, the rest gets its score."""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from w2sdiff.bench.scoring.batches import Batch, Batches
from w2sdiff.bench.scoring.pictures import Ahead, Unit, shown
from w2sdiff.errors import InputError, W2SDiffError
from w2sdiff.jobs import Done, Failed, Ledger, Task

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ScoreWork"]


class ScoreWork:
    """The work of `run_local` and the other engines: a batch in, one outcome per item out.

    Pictures of the next batch are read meanwhile. A batch that is too large for the memory is
    halved, and so are all later ones. Where a scorer refuses a batch, its pictures are tried one
    by one, so that a bad one costs nobody else the score. What has a score already is not scored
    again.

    Args:
        batches: what there is to do, and by which scorer.
        ledger: where finished scores are.
        on_batch: told how many pictures went through the scorer.
    """

    def __init__(
        self,
        batches: Batches,
        ledger: Ledger,
        *,
        on_batch: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.scorer = batches.scorer
        self._batches = batches
        self._ledger = ledger
        self._on_batch = on_batch
        self._most = sys.maxsize
        self._scored = False
        self._ahead = Ahead(self._wanted)

    def __call__(self, task: Task) -> list[Done | Failed]:
        """Score a batch."""
        assert isinstance(task, Batch)
        read = self._ahead.take(task.number)
        outcomes: dict[int, Done | Failed] = {}
        ready: dict[int, list[Image]] = {}
        for place, images in read.items():
            bad = next((image for image in images if isinstance(image, Failed)), None)
            if bad is not None:
                outcomes[place] = bad
            else:
                ready[place] = [image for image in images if not isinstance(image, Failed)]
        outcomes |= self._score_units(task, ready)
        self._on_batch(sum(map(len, ready.values())))
        return [
            outcomes[place] if place in outcomes else self._known(task, place)
            for place in range(len(task.items))
        ]

    def close(self) -> None:
        """Let go of the pictures that were read ahead, and of what the scorer has loaded."""
        self._ahead.close()
        self.scorer.close()

    def __enter__(self) -> ScoreWork:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wanted(self, number: int) -> Mapping[int, Unit]:
        if number >= len(self._batches):
            return {}
        batch = self._batches[number]
        records = [self._ledger.get(item.key) for item in batch.items]
        return {
            place: unit
            for place, (unit, record) in enumerate(zip(batch.units, records, strict=True))
            if record is None or record.status != "done"
        }

    def _known(self, task: Batch, place: int) -> Done | Failed:
        record = self._ledger.get(task.items[place].key)
        if record is None:
            return Failed("its record was damaged while it was read")
        return Done({}, record.facts)

    def _score_units(
        self, batch: Batch, ready: Mapping[int, Sequence[Image]]
    ) -> dict[int, Done | Failed]:
        if not ready:
            return {}
        prompts = {place: batch.units[place][0].prompt for place in ready}
        if self.scorer.per_prompt:
            return {
                place: self._try(images, [prompts[place]] * len(images), together=True)[0]
                for place, images in ready.items()
            }
        images = [unit[0] for unit in ready.values()]
        found = self._try(images, list(prompts.values()))
        return dict(zip(ready, found, strict=True))

    def _try(
        self, images: Sequence[Image], prompts: Sequence[str], *, together: bool = False
    ) -> list[Done | Failed]:
        """Score pictures, in smaller parts where all at once fails; `together` never parts them."""
        first = not self._scored
        refusals: list[Exception] = []
        found = self._halving(images, prompts, together, refusals)
        alike = len({str(error) for error in refusals}) == 1 < len(images) == len(refusals)
        if first and not self._scored and alike and isinstance(refusals[0], W2SDiffError):
            raise refusals[0]  # nothing was ever scored, all meet one refusal: it is not theirs
        return found

    def _halving(
        self,
        images: Sequence[Image],
        prompts: Sequence[str],
        together: bool,
        refusals: list[Exception],
    ) -> list[Done | Failed]:
        n = len(images)
        if together or n <= self._most:
            try:
                return self._outcomes(images, prompts)
            except Exception as error:
                full = _out_of_memory(error)
                failed = _failed(error)
                reason = error.with_traceback(None)  # its frames hold what should be freed
            if full:
                self._most = max(1, n // 2)
                _free_memory()
            if together or n == 1:
                refusals.append(reason)
                return [failed] * n
        half = min(self._most, (n + 1) // 2)
        parts = [slice(start, start + half) for start in range(0, n, half)]
        return [
            outcome
            for part in parts
            for outcome in self._halving(images[part], prompts[part], together, refusals)
        ]

    def _outcomes(self, images: Sequence[Image], prompts: Sequence[str]) -> list[Done | Failed]:
        scorer = self.scorer
        values = [float(value) for value in scorer.score(images, prompts)]
        if len(values) != len(images):
            raise ValueError(
                f"the scorer {scorer.kind} gave {len(values)} scores for {len(images)} pictures"
            )
        tokens = scorer.tokens(prompts) if scorer.needs_prompt else None
        most = scorer.max_tokens
        outcomes: list[Done | Failed] = []
        for place, value in enumerate(values):
            count = tokens[place] if tokens is not None else None
            cut = count is not None and most is not None and count > most
            facts: dict[str, Any] = {"tokens": count, "truncated": cut}
            if math.isfinite(value):
                outcomes.append(Done({}, {"score": value, **facts}))
            else:
                outcomes.append(Failed("not a number", {"score": None, **facts}))
        self._scored = True
        return outcomes


def _failed(error: Exception) -> Failed:
    if isinstance(error, InputError):
        return Failed(_line(error))
    text = traceback.format_exc()
    return Failed(f"{type(error).__name__}: {_line(error)}", {"traceback": text})


def _line(error: Exception) -> str:
    return shown(" ".join(str(error).split())) or "no message"


def _out_of_memory(error: Exception) -> bool:
    """Whether there was too little memory: each library and device says it in its own words."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "t allocate memory" in text


def _free_memory() -> None:
    torch = sys.modules.get("torch")  # a scorer without it has nothing on a device
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()

"""Collect: run a pipeline over prompts, and keep what a noise model learns from.

    Plan.of -> estimate -> collect -> (data.Collected)

Every shard is an item of a ledger: a run resumes, and several processes may share a folder.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from w2sdiff.core2.noise_model import Host
from w2sdiff.core2.record import Recorded, Take
from w2sdiff.core2.shard import shard_bytes
from w2sdiff.errors import InputError
from w2sdiff.generate import Drawn, Recipe, Shot, Studio, cfg_scale
from w2sdiff.jobs import (
    Done,
    Event,
    Failed,
    Item,
    Job,
    Ledger,
    Summary,
    Task,
    check_writable,
    run_local,
    run_ray,
    write_whole,
)

if TYPE_CHECKING:
    from torch import Tensor

    from w2sdiff.generate import Model, Settings
    from w2sdiff.methods import Method
    from w2sdiff.prompts import PromptRow
    from w2sdiff.scorers import Scorer

__all__ = ["MANIFEST", "Estimate", "Keep", "Plan", "collect", "estimate"]

MANIFEST = "collect.json"


@dataclass(frozen=True)
class Keep:
    """Which pictures are worth learning from: those that a scorer gives at least a threshold."""

    scorer: Scorer
    threshold: float

    def to_json(self) -> dict[str, Any]:
        """Everything that decides the choice."""
        return {"scorer": self.scorer.fingerprint(), "threshold": self.threshold}


@dataclass(frozen=True)
class Plan:
    """What to collect.

    Attributes:
        model: which model.
        settings: how, resolved by `Settings.on_device`; its guidance is what is learned.
        method: whose effective prediction is the target; `Plain()`: the guided prediction.
        rows: the prompts; each is drawn once.
        first_seed: of the first prompt's start noise; the others follow.
        steps: numbers of the steps to keep, from 0; None: all.
        shard: prompts per file, which are drawn together.
        keep: which pictures count; None: all.

    Raises:
        InputError: no prompts, a step that the run does not have, or a shard below 1.
    """

    model: Model
    settings: Settings
    method: Method
    rows: tuple[PromptRow, ...]
    first_seed: int = 0
    steps: tuple[int, ...] | None = None
    shard: int = 64
    keep: Keep | None = None

    def __post_init__(self) -> None:
        """Check the counts."""
        if not self.rows:
            raise InputError("there are no prompts to collect from")
        if self.shard < 1:
            raise InputError(f"expected at least 1 prompt per shard, got {self.shard}")
        if self.steps is not None and (
            not self.steps or min(self.steps) < 0 or max(self.steps) >= self.settings.steps
        ):
            raise InputError(
                f"the steps to keep are numbers from 0 to {self.settings.steps - 1}, "
                f"got {list(self.steps)}"
            )

    @cached_property
    def recipe(self) -> Recipe:
        """Model, settings and method."""
        return Recipe(self.model, self.settings, self.method)

    @property
    def decides(self) -> dict[str, Any]:
        """Everything that decides a shard, but its prompts."""
        keep = None if self.keep is None else self.keep.to_json()
        steps = None if self.steps is None else list(self.steps)
        return {**self.recipe.decides, "collect": 1, "steps": steps, "keep": keep}

    @property
    def samples(self) -> int:
        """Steps to be stored in all, if every picture counts."""
        return len(self.rows) * len(self.steps or range(self.settings.steps))

    def shots(self, number: int) -> list[Shot]:
        """The prompts of a shard, with their seeds."""
        rows = self.rows[number * self.shard : (number + 1) * self.shard]
        first = self.first_seed + number * self.shard
        return [self.recipe.shot(row, first + i) for i, row in enumerate(rows)]

    def tasks(self) -> Iterator[Task]:
        """One item per shard."""
        decides = self.decides
        for number in range(-(-len(self.rows) // self.shard)):
            shots = [shot.to_json() for shot in self.shots(number)]
            yield Task((Item({**decides, "shots": shots}),))


@dataclass(frozen=True)
class Estimate:
    """What collecting will take, from a short trial.

    Attributes:
        samples: stored steps.
        bytes: on disk.
        seconds: of one process.
    """

    samples: int
    bytes: int
    seconds: float


def estimate(plan: Plan, studio: Studio) -> Estimate:
    """Draw a few prompts for two steps, and say what all of it will take.

    Args:
        plan: what to collect.
        studio: of the plan's model and settings.

    Raises:
        As `collect`.
    """
    few, steps = plan.shots(0)[:8], min(2, plan.settings.steps)
    short = dataclasses.replace(plan.settings, steps=steps)
    recorded = Recorded(plan.method)
    studio.use(plan.model, short)
    studio.trace(recorded, few)  # the first call loads and warms up
    began = time.perf_counter()
    studio.trace(recorded, few)
    seconds = time.perf_counter() - began
    *_, takes = recorded.take()
    # What a prompt has once, and what it has per step, by the difference that a step makes.
    sizes = [len(shard_bytes(takes[:n], few, range(len(few)), Host())[0]) for n in (1, steps)]
    step = (sizes[-1] - sizes[0]) / max(1, steps - 1)
    stored = plan.samples // len(plan.rows)
    size = (sizes[0] + (stored - 1) * step) * len(plan.rows) / len(few)
    studio.use(plan.model, plan.settings)
    # By evaluations, not by steps: of two steps W2SD reflects one, of twenty nineteen.
    scale = cfg_scale(plan.model, plan.settings)
    each = [recorded.cost(n, scale) for n in (plan.recipe.steps, steps)]
    whole = len(plan.rows) * each[0] / (len(few) * each[1])
    return Estimate(plan.samples, round(size), seconds * whole)


def collect(
    plan: Plan,
    out: Path,
    *,
    engine: Literal["local", "ray"] = "local",
    workers: int = 1,
    on_event: Callable[[Event], None] = lambda _: None,
    on_step: Callable[[int, int], None] = lambda _done, _total: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Summary:
    """Run the pipeline over the prompts, and store the steps; or what is left of it.

    Shao et al. 2025, arXiv 2503.09662, the Collect phase: per step the conditional prediction, the
    target, the latents and the noise level, and once per prompt its text embeddings, in float16
    safetensors of `plan.shard` prompts each. The target is the guided prediction, or any method's
    effective one (`Levels.effective`), so that a weak-strong pair can be learned as well.

    Args:
        plan: what to collect.
        out: the folder; the same plan goes on where it stopped, another one is refused.
        engine: "local" runs in this process (any number may share the folder), "ray" in actors.
        workers: how many actors.
        on_event: told about each shard.
        on_step: told after every denoising step.
        stopping: asked before each shard.

    Cost: the method's evaluations, and for other methods than plain guidance one more per step.

    Raises:
        InputError: the folder holds something else, or cannot be written.
        UnsupportedError: guidance is off, or how the pipeline does it is not known.

    Example:
        >>> import tempfile
        >>> from w2sdiff import Plain
        >>> from w2sdiff.generate import Settings, find_model
        >>> from w2sdiff.prompts import load_set
        >>> settings = Settings(steps=2, guidance=3.0, device="cpu", dtype="float32")
        >>> rows = load_set("shapes-train", limit=2).rows
        >>> plan = Plan(find_model("shapes-unet"), settings, Plain(), rows)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     collect(plan, Path(folder)).made
        1
    """
    check_writable(out)
    _agree(plan, out)
    if engine == "ray":
        from functools import partial

        on_gpu = plan.settings.device.startswith("cuda")
        return run_ray(
            partial(_job, plan, out.resolve()),
            workers=workers,
            resources={"num_gpus": 1} if on_gpu else None,
            on_event=on_event,
            stopping=stopping,
        )
    work = _Work(plan, on_step)
    try:
        with Ledger(out) as ledger:
            return run_local(ledger, plan.tasks(), work, on_event=on_event, stopping=stopping)
    finally:
        work.close()


def _job(plan: Plan, out: Path) -> Job:
    return Job(Ledger(out), list(plan.tasks()), _Work(plan))


class _Work:
    """Makes shards; the pipeline is loaded at the first one."""

    def __init__(
        self, plan: Plan, on_step: Callable[[int, int], None] = lambda _done, _total: None
    ) -> None:
        self.plan = plan
        self._studio = Studio(plan.model, plan.settings, on_step=on_step)
        self._recorded = Recorded(plan.method, plan.steps)
        self._host: Host | None = None

    def __call__(self, task: Task) -> Sequence[Done | Failed]:
        """Draw the prompts of a shard together, and keep those that count."""
        [item] = task.items
        shots = [Shot(**shot) for shot in item.spec["shots"]]
        began = time.perf_counter()
        if self.plan.keep is None:
            self._studio.trace(self._recorded, shots)
            takes = self._recorded.take()[-1]
            kept = list(range(len(shots)))
        else:
            takes, shots, kept = self._chosen(self.plan.keep, shots)
        host = self._host = self._host or self._measure(takes, shots)
        data, facts = shard_bytes(takes, shots, kept, host)
        facts |= {"left_out": len(task.items[0].spec["shots"]) - len(kept)}
        facts |= {"seconds": round(time.perf_counter() - began, 3)}
        return [Done({f"{item.key[:16]}.safetensors": data}, facts)]

    def close(self) -> None:
        """Let go of the pipeline."""
        self._studio.close()

    def _chosen(self, keep: Keep, shots: list[Shot]) -> tuple[list[Take], list[Shot], list[int]]:
        """The recorded steps, the shots they are of, and which of these are worth keeping."""
        calls: list[list[Take]] = []

        def made(_group: Sequence[Drawn]) -> None:
            # The last one: a call before it may have run to its end and found no memory to decode.
            calls.append(self._recorded.take()[-1])

        drawn = self._studio.draw(self._recorded, shots, made=made)
        there = [i for i, one in enumerate(drawn) if one.calls]  # the others had no memory alone
        if not calls:
            raise InputError(
                f"not even one picture fits the memory ({drawn[0].reason}); "
                "take a smaller --size, or --offload"
            )
        shots, drawn = [shots[i] for i in there], [drawn[i] for i in there]
        images = {i: one.image for i, one in enumerate(drawn) if one.image is not None}
        prompts = [shots[i].prompt for i in images]
        scores: Any = keep.scorer.score(list(images.values()), prompts) if images else []
        kept = [i for i, score in zip(images, scores, strict=True) if score >= keep.threshold]
        return _joined(calls), shots, kept

    def _measure(self, takes: list[Take], shots: list[Shot]) -> Host:
        """The host, and what one evaluation of it costs, from one more step."""
        from w2sdiff.core2.cost import evaluation_flops

        plan = self.plan
        read = Host.of_network(self._studio.denoiser)
        flops = evaluation_flops(self._studio, shots[0])
        scales = {take.guidance_scale for take in takes}
        return dataclasses.replace(
            read,
            name=plan.model.name,
            sha256=plan.model.sha256,
            channels=takes[0].given.x.shape[-1 if takes[0].given.x.ndim == 3 else 1],
            prediction=takes[0].prediction,
            guidance_scale=scales.pop() if len(scales) == 1 else None,
            evaluation_flops=flops,
        )


def _joined(calls: list[list[Take]]) -> list[Take]:
    """One batch from the calls that made it: one, or several where the memory was short."""
    if len(calls) == 1:
        return calls[0]
    return [_one(takes) for takes in zip(*calls, strict=True)]


def _one(takes: Sequence[Take]) -> Take:
    """The same step of several batches as one of them all."""
    import torch

    first = takes[0]

    def join(name: str, value: Tensor) -> Tensor:
        parts = [getattr(take.given, name) for take in takes]
        return value if name == "positions" else torch.cat(parts)

    return dataclasses.replace(
        first,
        c=torch.cat([take.c for take in takes]),
        target=torch.cat([take.target for take in takes]),
        given=first.given.map(join),
    )


def _agree(plan: Plan, out: Path) -> None:
    """Write what the folder is for, or refuse if it is for something else."""
    path = out / MANIFEST
    decides = json.loads(json.dumps(plan.decides))
    about = {
        "schema": 1,
        "decides": decides,
        "model": plan.model.name,
        # What is trained on it says where its data is from, but names no folder of a machine.
        "method": plan.model.portable(plan.recipe.method_json),
        "settings": plan.settings.decides(),
        "prompts": len(plan.rows),
        "first_seed": plan.first_seed,
        "shard": plan.shard,
        # Fewer or more prompts go on in the same folder; what else lies there is not of this plan.
        "items": [item.key for task in plan.tasks() for item in task.items],
    }
    if path.is_file():
        try:
            then = dict(json.loads(path.read_text(encoding="utf-8"))["decides"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged: {error}") from error
        names = sorted(name for name in {*then, *decides} if then.get(name) != decides.get(name))
        if names:
            raise InputError(
                f"{out} holds data that was collected otherwise (it differs in "
                f"{', '.join(names)}); take another folder"
            )
    out.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(about, indent=1, sort_keys=True) + "\n").encode())

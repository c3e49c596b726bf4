"""Results made up for tests: known gains, real little pictures, no network.

    from bench.made import ARMS, SCORERS, made_results
    results = made_results(tmp_path, prompts=40, gains={("w2sd", "hpsv2.1"): 0.02})

A score is the prompt's own level + the arm's gain + noise, in units that fit the scorer. What is
equal for the arms of one prompt (its level, its start noise) is what pairing takes away.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from w2sdiff.bench.results import ArmFacts, PromptFacts, Results, Sample, ScorerFacts
from w2sdiff.jobs import digest

ARMS = (
    ArmFacts("plain", "plain sampling", 20, 3.0, 40),
    ArmFacts("w2sd", "W2SD, guidance 3 over 1", 20, 3.0, 80),
    ArmFacts("w2sd = steps", "plain, more steps", 40, 3.0, 80, "w2sd", "evaluations"),
    ArmFacts("w2sd = strength", "plain, guidance 4.4", 40, 4.4, 80, "w2sd", "strength", 4.4),
)
"""Two arms that were asked for, and two rivals of the second."""


def scorer(name: str, group: str, higher: bool | None, low: float, high: float) -> ScorerFacts:
    fingerprint = {"scorer": name, "formula": "made up"}
    return ScorerFacts(
        name=name,
        group=group,
        higher_is_better=higher,
        expected=(low, high),
        needs_prompt=group != "statistic",
        max_tokens=77 if group == "rises with guidance" else None,
        recipe=digest(fingerprint),
        fingerprint=fingerprint,
    )


SCORERS = (
    scorer("hpsv2.1", "rises with guidance", True, 0.13, 0.34),
    scorer("aesthetic", "does not rise with guidance", True, 4.0, 7.0),
    scorer("shapes", "exact", True, 0.0, 1.0),
    scorer("saturation", "statistic", None, 0.0, 1.0),
)
"""One scorer of each group."""

CATEGORIES = ("colours", "counting", "positions")


def made_prompts(count: int, categories: Sequence[str] = CATEGORIES) -> tuple[PromptFacts, ...]:
    """Prompts with the categories in turn."""
    return tuple(
        PromptFacts(f"{n:04d}", f"made-up prompt number {n}", categories[n % len(categories)])
        for n in range(count)
    )


def picture(arm: int, prompt: int, replicate: int, size: int) -> bytes:
    """A PNG that no other arm, prompt or replicate has: a disc whose place and colour tell."""
    rows, columns = np.mgrid[:size, :size] / max(1, size - 1)
    x, y = np.random.default_rng((prompt, replicate)).uniform(0.3, 0.7, 2)
    disc = (columns - x) ** 2 + (rows - y) ** 2 < 0.06
    pixels = np.full((size, size, 3), 235, np.uint8)
    pixels[disc] = np.array([40 * arm, 37 * prompt, 60 + 90 * replicate]) % 200
    pixels[0, :3, 0] = arm % 256, prompt % 256, prompt // 256 % 256
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def made_results(
    folder: Path | None = None,
    *,
    arms: Sequence[ArmFacts] = ARMS,
    prompts: int | Sequence[PromptFacts] = 24,
    scorers: Sequence[ScorerFacts] = SCORERS,
    replicates: int = 1,
    gains: Mapping[tuple[str, str], float] | None = None,
    noise: float = 1.0,
    seed: int = 0,
    missing: Collection[tuple[int, int, int]] = (),
    failed: Collection[tuple[int, int, int]] = (),
    compare: Sequence[tuple[str, str]] = (),
    size: int = 16,
    title: str = "A made-up run",
) -> Results:
    """Results with a known truth.

    Args:
        folder: pictures are written to `folder / "images"`; None for none on disk.
        arms: see `ARMS`.
        prompts: their number, or the prompts.
        scorers: see `SCORERS`.
        replicates: pictures per arm and prompt.
        gains: (arm, scorer) -> what the arm gains, in tenths of the scorer's expected range (a
            gain of 1 with noise 1 is one standard deviation of the noise); 0 where not given.
        noise: standard deviation of a picture's own noise, in the same unit.
        seed: of the noise.
        missing: (arm, prompt, replicate) that were not tried.
        failed: (arm, prompt, replicate) that were tried in vain.
        compare: pairs to compare besides arms and rivals.
        size: of the pictures, pixels a side.
        title: of the run.
    """
    rows = made_prompts(prompts) if isinstance(prompts, int) else tuple(prompts)
    random = np.random.default_rng(seed)
    shape = (len(arms), len(rows), replicates)
    scores = {}
    for judge in scorers:
        low, high = judge.expected
        level = random.normal(size=(1, len(rows), 1))
        own = noise * random.normal(size=shape)
        gain = [(gains or {}).get((arm.name, judge.name), 0.0) for arm in arms]
        tenths = 5 + level + own + np.array(gain)[:, None, None]
        scores[judge.name] = low + (high - low) * tenths / 10
    absent = dict.fromkeys(missing, "missing") | dict.fromkeys(failed, "failed")
    samples = []
    for place in np.ndindex(*shape):
        if place in absent:
            reason = "out of memory" if absent[place] == "failed" else None
            samples.append(Sample(*place, status=absent[place], reason=reason))
            continue
        samples.append(
            _sample(place, arms, rows, {name: float(of[place]) for name, of in scores.items()})
        )
    if folder is not None:
        samples = [_drawn(sample, folder, size) for sample in samples]
    return Results(
        title=title,
        folder=folder or Path("nowhere"),
        arms=tuple(arms),
        prompts=rows,
        scorers=tuple(scorers),
        samples=tuple(samples),
        replicates=replicates,
        compare=tuple(compare),
        provenance={"versions": {"w2sdiff": "0"}, "prompts": {"name": "made up", "n": len(rows)}},
    )


def _sample(place, arms, prompts, scores):
    arm, prompt, replicate = place
    return Sample(
        *place,
        seed=1000 * prompt + replicate,
        noise=hashlib.sha256(f"{prompt} {replicate}".encode()).hexdigest(),
        scores=scores,
        truncated=("hpsv2.1",) if len(prompts[prompt].text) > 300 else (),
        seconds=0.01 * (arms[arm].evaluations or 1),
        peak_mb=100.0 + arm,
    )


def _drawn(sample, folder, size):
    if sample.status != "done":
        return sample
    data = picture(sample.arm, sample.prompt, sample.replicate, size)
    name = f"images/{sample.arm}-{sample.prompt}-{sample.replicate}.png"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return dataclasses.replace(sample, image=name, sha256=hashlib.sha256(data).hexdigest())

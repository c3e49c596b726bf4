"""The analysis of made-up results, against closed forms, other libraries and the known truth."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats
from bench.made import ARMS, CATEGORIES, SCORERS, made_results
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from w2sdiff.bench.analysis import Comparison
from w2sdiff.bench.results import Results, Sample
from w2sdiff.bench.stats.analyse import analyse
from w2sdiff.bench.stats.family import family, holm
from w2sdiff.errors import InputError

TWO = ARMS[:2]
JUDGE = SCORERS[1]


def of_scores(a, b, *, scorer=JUDGE, **options) -> Comparison:
    """The one comparison of arm w2sd with scores `a` against arm plain with scores `b`."""
    results = made_results(arms=TWO, prompts=len(a), scorers=[scorer])
    samples = tuple(
        Sample(arm, prompt, 0, scores={} if score is None else {scorer.name: score})
        for arm, scores in enumerate([b, a])
        for prompt, score in enumerate(scores)
    )
    return analyse(dataclasses.replace(results, samples=samples), **options).comparisons[0]


def test_identical_arms_differ_by_exactly_nothing():
    scores = list(np.random.default_rng(0).normal(size=50))
    one = of_scores(scores, scores)
    assert one.difference.mean == 0.0
    assert one.difference.interval == (0.0, 0.0)
    assert (one.p, one.p_holm) == (1.0, 1.0)
    assert (one.wins, one.ties, one.losses) == (0, 50, 0)
    assert (one.win_rate, one.win_interval) == (0.5, (0.5, 0.5))
    assert one.outcome == "no difference seen"


def test_one_win():
    one = of_scores([2.0] + [1.0] * 9, [1.0] * 10)
    assert (one.wins, one.ties, one.losses, one.win_rate) == (1, 9, 0, 0.55)
    assert one.difference.mean == 0.1
    assert one.p == 1.0  # flipping the only difference leaves its size
    assert one.outcome == "no difference seen"


@pytest.mark.parametrize("n", [0, 1, 2])
def test_next_to_no_prompts(n):
    one = of_scores([2.0] * n + [None] * (5 - n), [1.0] * 5)
    assert (one.difference.n, one.excluded) == (n, 5 - n)
    assert (one.p, one.p_holm) == ([1.0, 1.0, 0.5][n],) * 2
    assert one.outcome == ("no difference seen" if n else "nothing to compare")
    assert math.isnan(one.difference.mean) == (n == 0)
    assert math.isnan(one.difference.interval[0]) == (n < 2)
    assert one.detectable == math.inf if n == 2 else math.isnan(one.detectable)


def test_a_run_without_prompts_or_scorers_or_arms():
    assert analyse(made_results(prompts=0)).comparisons[0].outcome == "nothing to compare"
    assert analyse(made_results(scorers=())).comparisons == ()
    assert analyse(made_results(arms=ARMS[:1])).comparisons == ()


def test_figures_of_a_comparison_are_those_of_numpy_and_scipy():
    results = made_results(prompts=80, replicates=2, gains={("w2sd", "aesthetic"): 0.6})
    one = next(
        one
        for one in analyse(results).comparisons
        if (one.rival, one.scorer) == ("plain", "aesthetic")
    )
    values = results.values["aesthetic"]
    row = (values[1] - values[0]).mean(axis=-1)
    assert one.difference.mean == pytest.approx(row.mean())
    assert (one.wins, one.losses) == ((row > 0).sum(), (row < 0).sum())
    peer = proportion_confint(one.wins, 80, method="wilson")
    assert one.win_interval == pytest.approx(peer)
    peer = scipy.stats.bootstrap((row,), np.mean, method="percentile", rng=1).confidence_interval
    assert one.difference.interval == pytest.approx(tuple(peer), abs=0.003)
    peer = scipy.stats.permutation_test((row,), np.mean, permutation_type="samples", rng=1).pvalue
    assert one.p == pytest.approx(peer, abs=4 * math.sqrt(peer / 10_000))
    for number, category in enumerate(CATEGORIES):
        part = one.categories[category]
        assert part.n == len(row[number::3])
        assert part.mean == pytest.approx(row[number::3].mean())
        assert part.interval[0] < part.mean < part.interval[1]


def test_less_is_better_turns_wins_and_outcome_round():
    rng = np.random.default_rng(0)
    low, high = rng.normal(0, 1, 60), rng.normal(3, 1, 60)
    less = dataclasses.replace(JUDGE, higher_is_better=False)
    worse, better = of_scores(low, high), of_scores(low, high, scorer=less)
    assert (worse.outcome, better.outcome) == ("worse", "better")
    assert (worse.wins, worse.losses) == (better.losses, better.wins)
    neither = of_scores(low, high, scorer=dataclasses.replace(JUDGE, higher_is_better=None))
    assert neither.outcome == "differs"


def test_the_tie_margin_is_the_scorers():
    wide = dataclasses.replace(JUDGE, tie=0.5)
    one = of_scores([1.5, 1.51, 0.4, 1.0], [1.0] * 4, scorer=wide)
    assert (one.wins, one.ties, one.losses) == (1, 2, 1)


def test_replicates_count_where_both_arms_have_them():
    results = made_results(arms=TWO, prompts=30, replicates=3, missing=[(1, 0, 0), (1, 4, 0)])
    one = analyse(results).comparisons[0]
    values = results.values["hpsv2.1"]
    expected = np.nanmean(values[1] - values[0], axis=-1)  # of the other two, on both sides
    assert one.difference.n == 30
    assert one.difference.mean == pytest.approx(expected.mean())


def test_what_is_missing_failed_flagged_or_no_number_is_left_out_and_counted():
    results = made_results(arms=TWO, prompts=30, missing=[(1, 0, 0)], failed=[(0, 1, 0)])

    def changed(sample: Sample) -> Sample:
        if (sample.arm, sample.prompt) == (1, 2):
            return dataclasses.replace(sample, flags=("of one colour",))
        if (sample.arm, sample.prompt) == (0, 3):
            broken = {**sample.scores, "shapes": math.nan, "aesthetic": math.inf}
            return dataclasses.replace(sample, scores=broken, flags=("shapes: not a number",))
        return sample

    results = dataclasses.replace(results, samples=tuple(map(changed, results.samples)))
    analysis = analyse(results)
    excluded = {one.scorer: one.excluded for one in analysis.comparisons}
    assert excluded == {"hpsv2.1": 3, "aesthetic": 4, "shapes": 4, "saturation": 3}
    plain, w2sd = analysis.cell("plain", "hpsv2.1"), analysis.cell("w2sd", "hpsv2.1")
    assert (plain.prompts, plain.failed, plain.missing, plain.flagged) == (29, 1, 0, 1)
    assert (w2sd.prompts, w2sd.failed, w2sd.missing, w2sd.flagged) == (28, 0, 1, 1)
    assert math.isfinite(analysis.cell("plain", "aesthetic").mean)


def test_holm_is_that_of_statsmodels():
    for seed in range(20):
        p = np.random.default_rng(seed).uniform(0, 0.2, 9).round(2)
        assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert holm([]) == []


def test_holm_runs_over_the_whole_analysis():
    comparisons = analyse(made_results(gains={("w2sd", "shapes"): 1.0})).comparisons
    assert len(comparisons) == 3 * 4
    corrected = multipletests([one.p for one in comparisons], method="holm")[1]
    assert [one.p_holm for one in comparisons] == pytest.approx(corrected)


def test_family():
    results = made_results(arms=ARMS, compare=[("w2sd = steps", "plain"), ("plain", "w2sd")])
    assert family(results) == (
        ("w2sd", "w2sd = steps"),
        ("w2sd", "w2sd = strength"),
        ("w2sd = steps", "plain"),
        ("plain", "w2sd"),  # as it was asked for, and not again the other way round
    )
    assert len(family(results, all_pairs=True)) == 6


@pytest.mark.parametrize("pair", [("w2sd", "w2s"), ("w2sd", "w2sd")])
def test_pairs_that_cannot_be_compared(pair):
    with pytest.raises(InputError, match=pair[1]):
        analyse(made_results(compare=[pair]))


def test_two_recipes_under_one_name_are_refused():
    fingerprint = {"scorer": "hpsv2.1", "formula": "another"}
    other = dataclasses.replace(SCORERS[0], recipe="f" * 64, fingerprint=fingerprint)
    results = made_results(scorers=(*SCORERS, other))
    with pytest.raises(InputError, match=rf"{SCORERS[0].recipe[:12]} and f{{12}}.*formula"):
        analyse(results)


def test_agreement_is_kendalls():
    analysis = analyse(made_results(arms=TWO, prompts=40))
    values = made_results(arms=TWO, prompts=40).values
    differences = [(values[judge.name][1] - values[judge.name][0])[:, 0] for judge in SCORERS[:2]]
    first = analysis.agreement[0]
    assert (first.first, first.second, first.n) == ("hpsv2.1", "aesthetic", 40)
    assert first.tau == pytest.approx(scipy.stats.kendalltau(*differences).statistic)
    assert len(analysis.agreement) == 6


def test_a_scorer_that_is_always_the_same_agrees_with_nothing():
    results = made_results(arms=TWO)
    flat = [
        dataclasses.replace(sample, scores={**sample.scores, "shapes": 1.0})
        for sample in results.samples
    ]
    analysis = analyse(dataclasses.replace(results, samples=tuple(flat)))
    own = [one for one in analysis.agreement if "shapes" in (one.first, one.second)]
    assert all(math.isnan(one.tau) for one in own)


def test_agreement_is_about_better_not_about_more():
    results = made_results(arms=TWO, scorers=SCORERS[:2])
    turned = (SCORERS[0], dataclasses.replace(SCORERS[1], higher_is_better=False))
    tau = analyse(results).agreement[0].tau
    again = analyse(dataclasses.replace(results, scorers=turned)).agreement[0].tau
    assert again == pytest.approx(-tau)


def repeated(gain: float, *, runs: int, n: int) -> list[Comparison]:
    """One comparison of each of many runs, as one run whose scorers are independent."""
    scorers = [dataclasses.replace(JUDGE, name=f"s{number}") for number in range(runs)]
    gains = {("w2sd", one.name): gain for one in scorers}
    results = made_results(arms=TWO, prompts=n, scorers=scorers, gains=gains, seed=n)
    found = []
    for scorer in scorers:
        samples = [
            dataclasses.replace(one, scores={scorer.name: one.scores[scorer.name]})
            for one in results.samples
        ]
        own = dataclasses.replace(results, scorers=(scorer,), samples=tuple(samples))
        found += analyse(own, draws=500).comparisons
    return found


@pytest.mark.parametrize("n", [15, 60])
def test_what_is_called_detectable_is_seen_four_times_out_of_five(n):
    # Noise 1 on both sides makes the differences √2 wide.
    gain = scipy.stats.t.ppf([0.975, 0.8], n - 1).sum() * math.sqrt(2 / n)
    runs = 150
    found = repeated(gain, runs=runs, n=n)
    detectable = np.mean([one.detectable for one in found])
    assert detectable == pytest.approx(gain * 0.3, rel=0.03)  # a tenth of 4..7 is 0.3
    seen = np.mean([one.outcome == "better" for one in found])
    assert seen == pytest.approx(0.8, abs=2.6 * math.sqrt(0.8 * 0.2 / runs))


@pytest.mark.slow
def test_nothing_is_seen_where_nothing_is():
    # The chance that any of the 12 comparisons of a run finds what is not there is at most 5%.
    alarms = [
        any(
            one.outcome in ("better", "worse", "differs")
            for one in analyse(made_results(prompts=30, seed=seed), draws=500).comparisons
        )
        for seed in range(400)
    ]
    assert np.mean(alarms) <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / 400)


def test_too_few_prompts_can_show_nothing_and_say_so():
    results: Results = made_results(prompts=6, noise=0.01, gains={("w2sd", "shapes"): 3.0})
    analysis = analyse(results)
    assert {one.detectable for one in analysis.comparisons} == {math.inf}
    assert {one.outcome for one in analysis.comparisons} == {"no difference seen"}
    assert "too few prompts for any difference to pass the test" in analysis.judgements[1].marks


def test_many_comparisons_leave_room_for_a_small_p():
    scorers = [dataclasses.replace(JUDGE, name=f"s{number}") for number in range(30)]
    gains = {("w2sd", "s0"): 5.0}
    analysis = analyse(made_results(arms=TWO, scorers=scorers, gains=gains), draws=500)
    assert analysis.comparisons[0].outcome == "better"  # 30 × 1/501 would not pass

"""One test per rule: what a verdict says, and when it says it."""

from __future__ import annotations

import dataclasses
import math

import pytest
from bench.made import ARMS, SCORERS, made_results

from w2sdiff.bench.analysis import Comparison, Difference, Judgement
from w2sdiff.bench.stats.analyse import analyse
from w2sdiff.bench.stats.verdict import judge

STEPS, STRENGTH, PLAIN = "w2sd = steps", "w2sd = strength", "plain"


def compared(rival: str, scorer: str, outcome: str, mean: float = 0.1, **facts) -> Comparison:
    values = {"n": 100, "detectable": 0.05, "excluded": 0} | facts
    return Comparison(
        arm=facts.get("arm", "w2sd"),
        rival=rival,
        scorer=scorer,
        difference=Difference(values["n"], mean, (mean - 0.04, mean + 0.04)),
        p=0.01,
        p_holm=0.01,
        wins=0,
        ties=0,
        losses=0,
        win_rate=0.5,
        win_interval=(0.4, 0.6),
        detectable=values["detectable"],
        excluded=values["excluded"],
        outcome=outcome,
    )


def judged(*comparisons: Comparison, results=None) -> Judgement:
    return judge(results or made_results(prompts=100), comparisons)[1]


def everywhere(outcome: str, rivals=(STEPS, STRENGTH), scorers=SCORERS, **facts):
    return [
        compared(rival, scorer.name, outcome, **facts)
        for rival in rivals
        for scorer in scorers
        if scorer.higher_is_better is not None
    ]


def test_better_than_every_rival():
    verdict = judged(*everywhere("better", scorers=SCORERS[1:3]))
    assert verdict.sentence == (
        "w2sd: better than every rival of equal evaluations by aesthetic (+0.1, 95% interval 0.06 "
        "to 0.14) and shapes (+0.1, 95% interval 0.06 to 0.14); nothing to compare by hpsv2.1."
    )
    assert verdict.marks == ()


def test_wins_and_losses_have_the_same_words():
    better = judged(*everywhere("better", rivals=[STEPS])).sentence
    worse = judged(*everywhere("worse", rivals=[STEPS])).sentence
    assert worse == better.replace("better", "worse")


def test_the_closest_rival_gives_the_figure():
    near, far = (
        compared(STEPS, "shapes", "worse", -0.1),
        compared(STRENGTH, "shapes", "worse", -0.9),
    )
    for pair in ((near, far), (far, near)):
        assert "(-0.1, 95% interval -0.14 to -0.06)" in judged(*pair).sentence


def test_no_difference_says_what_would_have_been_seen():
    pair = [
        compared(STEPS, "shapes", "no difference seen", detectable=0.02),
        compared(STRENGTH, "shapes", "no difference seen", detectable=0.03),
    ]
    sentence = judged(*pair).sentence
    assert "no difference seen from any rival of equal evaluations by shapes" in sentence
    assert "(one of 0.03 would likely have been seen)" in sentence
    blind = compared(STEPS, "shapes", "no difference seen", detectable=math.inf)
    assert "(too few prompts to see any)" in judged(blind).sentence


def test_some_rivals():
    some = judged(compared(STEPS, "shapes", "better"), compared(STRENGTH, "shapes", "worse", -0.2))
    assert "better than 1 and worse than 1 of 2 rivals of equal evaluations" in some.sentence
    assert "+0.1, 95% interval 0.06 to 0.14; -0.2, 95% interval -0.24 to -0.16" in some.sentence
    none = compared(STRENGTH, "shapes", "no difference seen")
    one = judged(compared(STEPS, "shapes", "worse", -0.1), none)
    assert "worse than 1 of 2 rivals of equal evaluations by shapes (-0.1" in one.sentence


def test_gains_in_the_first_group_only():
    mark = "gains only in scores that rise with guidance strength alone (hpsv2.1)"
    rising = everywhere("better", scorers=SCORERS[:1])
    others = everywhere("no difference seen", scorers=SCORERS[1:])
    assert mark in judged(*rising, *others).marks
    assert mark not in judged(*rising, *everywhere("better", scorers=SCORERS[1:2])).marks
    assert mark not in judged(*others).marks
    alone = made_results(prompts=100, scorers=SCORERS[:1])
    said = "judged only by scores that rise with guidance strength alone (hpsv2.1)"
    assert said in judged(*rising, results=alone).marks


def test_gains_only_where_evaluations_are_not_matched():
    cheap = compared(PLAIN, "shapes", "better")
    equal = everywhere("no difference seen")
    mark = "gains only where it is not matched in evaluations (plain by shapes)"
    assert mark in judged(cheap, *equal).marks
    assert "no difference seen" in judged(cheap, *equal).sentence
    assert "better" not in judged(cheap, *equal).sentence
    assert mark not in judged(cheap, *everywhere("better")).marks


def test_gains_only_where_strength_is_not_matched():
    mark = "gains only where it is not matched in strength (w2sd = steps by shapes)"
    stronger = [compared(STEPS, "shapes", "better")]
    assert mark in judged(*stronger, compared(STRENGTH, "shapes", "no difference seen")).marks
    assert mark not in judged(*stronger, compared(STRENGTH, "shapes", "better")).marks
    assert mark not in judged(*stronger).marks  # there was no such rival


def test_worse_than_a_cheaper_arm():
    marks = judged(compared(PLAIN, "shapes", "worse", -0.1), *everywhere("worse")).marks
    assert "worse even than an arm of fewer evaluations (plain by shapes)" in marks


def test_without_rivals_of_equal_evaluations():
    verdict = judged(compared(PLAIN, "shapes", "better"))
    assert "better than plain, of fewer evaluations, by shapes" in verdict.sentence
    assert "no rival of equal evaluations" in verdict.marks


def test_evaluations_that_nobody_knows():
    arms = tuple(dataclasses.replace(arm, evaluations=None) for arm in ARMS[:2])
    results = made_results(prompts=100, arms=arms)
    verdict = judged(compared(PLAIN, "shapes", "better"), results=results)
    assert "better than plain by shapes" in verdict.sentence
    assert "evaluations are not known: one of the two may have cost more" in verdict.marks


@pytest.mark.parametrize(
    ("evaluations", "steps", "equal"),
    [
        (80, 40, True),
        (77, 40, True),
        (84, 40, True),
        (75, 40, False),
        (75, 15, True),
        (90, 9, True),
    ],
)
def test_evaluations_are_equal_within_a_twentieth_or_a_step_of_a_rival(evaluations, steps, equal):
    rival = dataclasses.replace(ARMS[2], evaluations=evaluations, steps=steps)
    results = made_results(prompts=100, arms=(*ARMS[:2], rival))
    marks = judged(compared(STEPS, "shapes", "better"), results=results).marks
    assert ("no rival of equal evaluations" not in marks) == equal
    near = f"rivals of {evaluations} evaluations, not 80: the nearest that whole steps allow"
    assert (near in marks) == (equal and abs(evaluations - 80) > 4)
    alien = dataclasses.replace(rival, rival_of=None)
    results = made_results(prompts=100, arms=(*ARMS[:2], alien))
    marks = judged(compared(STEPS, "shapes", "better"), results=results).marks
    assert ("no rival of equal evaluations" not in marks) == (abs(evaluations - 80) <= 4)


def test_statistics_that_moved():
    marks = judged(
        compared(STEPS, "saturation", "differs", 0.2),
        compared(STRENGTH, "saturation", "differs", 0.1),
    ).marks
    assert "saturation rose (against 2 of 2, by 0.1 or more)" in marks
    both = judged(
        compared(STEPS, "saturation", "differs", -0.2),
        compared(STRENGTH, "saturation", "no difference seen", 0.1),
    ).marks
    assert "saturation fell (against 1 of 2, by 0.2 or more)" in both


def test_prompts_left_out_and_few_prompts():
    some = [
        compared(STEPS, scorer.name, "no difference seen", n=97, excluded=3) for scorer in SCORERS
    ]
    assert "3 of 100 prompts left out for want of a score" in judged(*some).marks
    assert "3 of 100 prompts left out for want of a score by hpsv2.1" in judged(some[0]).marks
    assert "fewer than 20 prompts" not in judged(*some).marks
    few = compared(STEPS, "shapes", "no difference seen", n=19)
    assert "fewer than 20 prompts" in judged(few).marks


def test_the_first_arm_is_what_others_are_compared_with():
    verdict = judge(made_results(), [compared(PLAIN, "shapes", "better")])[0]
    assert verdict == Judgement("plain", "plain: what the other arms are compared with.")
    alone = judge(made_results(arms=ARMS[:1]), [])[0]
    assert alone.sentence == "plain: nothing to compare it with."


def test_a_method_that_only_makes_guidance_stronger_is_found_out():
    # It wins over plain by a score that loves guidance, and saturates, as its rival of equal
    # strength does.
    strong = {(arm, "hpsv2.1"): 2.0 for arm in ("w2sd", STRENGTH)}
    strong |= {(arm, "saturation"): 2.0 for arm in ("w2sd", STRENGTH)}
    verdict = analyse(made_results(prompts=100, gains=strong), draws=2000).judgements[1]
    assert verdict.sentence.startswith(
        "w2sd: better than 1 of 2 rivals of equal evaluations by hpsv2.1"
    )
    first, second, third = verdict.marks
    assert first == "gains only in scores that rise with guidance strength alone (hpsv2.1)"
    assert second == "gains only where it is not matched in strength (w2sd = steps by hpsv2.1)"
    assert third.startswith("saturation rose (against 1 of 2")

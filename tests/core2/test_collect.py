"""Collecting on tiny real pipelines: what is stored, resumed, chosen, estimated, refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
import tiny
import torch
from model_folders import model_folder
from noise_models import close

from w2sdiff import W2SD, Guidance, InputError, Plain, UnsupportedError
from w2sdiff.core2.collect import MANIFEST, Keep, Plan, collect, estimate
from w2sdiff.core2.cost import evaluation_flops
from w2sdiff.core2.data import Collected
from w2sdiff.generate import Settings, Studio, find_model
from w2sdiff.prompts import PromptRow, load_set
from w2sdiff.scorers import parse_scorer
from w2sdiff.testing.replay import remix

TEXTS = ["a red circle", "a cat", "two blue squares", "a green triangle", "a dog"]
SLOW_FAMILIES = [pytest.param(name, marks=pytest.mark.slow) for name in ("sdxl", "sd3")]
SCALES = {"sd": 5.0, "sdxl": 5.0, "sd3": 4.0, "pixart": 5.0}


def plan(family="sd", **changes):
    rows = tuple(PromptRow(str(i), text, {}) for i, text in enumerate(TEXTS))
    settings = {
        "steps": 3,
        "guidance": SCALES.get(family, 3.5),
        "size": (16, 16),
        "negative": "blurry",
        "device": "cpu",
        "dtype": "float32",
    }
    if family == "flux":
        settings["true_cfg"] = 4.0
    settings |= {name: changes.pop(name) for name in list(changes) if name in settings}
    if "scheduler" in changes:
        settings["scheduler"] = changes.pop("scheduler")
    options = {"method": Plain(), "rows": rows, "shard": 2, **changes}
    return Plan(find_model(str(model_folder(family))), Settings(**settings), **options)


def shards(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def texts_of(data):
    return [shard.prompts[row] for shard in data.shards for row in data.rows(shard)]


def independent(family, text, seed):
    """c, guided prediction and network input of every step of one prompt, by wrapping the stock
    pipeline.
    """
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(model_folder(family))
    pipe.set_progress_bar_config(disable=True)
    call = tiny.call_kwargs(family, steps=3, seed=seed, prompt=text)
    call.pop("max_sequence_length", None)
    call.pop("clean_caption", None)
    steps, seen = [], []
    network = tiny.denoiser(pipe, family)

    def look(_module, args, kwargs):
        seen.append(args[0] if args else kwargs["hidden_states"])

    network.register_forward_pre_hook(look, with_kwargs=True)

    def mix(c, u, _i, _n):
        guided = u + SCALES[family] * (c - u)
        steps.append((c, guided, seen[-1].chunk(2)[1]))
        return guided

    remix(pipe, family, call, mix)
    return steps


@pytest.mark.parametrize("family", ["sd", "pixart", *SLOW_FAMILIES])
def test_what_is_stored_is_what_an_independent_recording_has(family, tmp_path):
    """But for float16: a relative error of 2^-11."""
    assert collect(plan(family, first_seed=7), tmp_path).made == 3
    data = Collected.open(tmp_path)
    assert sorted(texts_of(data)) == sorted(TEXTS)
    assert len(data) == len(TEXTS) * 3
    prompts = iter(texts_of(data))
    for batch in data.read():
        for first in range(0, len(batch.c), 3):
            text = next(prompts)
            expected = independent(family, text, 7 + TEXTS.index(text))
            for i, (c, guided, x) in enumerate(expected):
                row = first + i
                assert int(batch.step[row]) == i
                for found, wanted in ((batch.c, c), (batch.target, guided), (batch.given.x, x)):
                    # Rounding to 11 bits, and the pipelines' own in batches of another size.
                    close(found[row : row + 1], wanted, by=2**-11 + 1e-4)
    host = data.host
    assert host.prediction == ("flow" if family == "sd3" else "epsilon")
    assert (host.channels, host.guidance_scale) == (4, SCALES[family])
    assert host.denoiser == type(tiny.denoiser(tiny.build(family), family)).__name__
    assert host.sha256 == find_model(str(model_folder(family))).sha256
    assert (batch.given.mask is not None) == (family == "pixart")


def test_packed_latents_and_their_places(tmp_path):
    assert collect(plan("flux", steps=2), tmp_path).made == 3
    data = Collected.open(tmp_path)
    batch = next(data.read())
    assert batch.c.shape[1:] == (16, 16)
    assert batch.given.positions.shape == (16, 2)
    assert (data.host.channels, data.host.guidance_scale) == (16, 4.0)


def test_padding_of_all_prompts_of_a_shard_is_not_stored(tmp_path):
    collect(plan("pixart", steps=1), tmp_path)
    data = Collected.open(tmp_path)
    for shard in data.shards:
        found = shard.read()
        longest = max(len(text.encode()) for text in shard.prompts) + 1  # a byte each, and the end
        assert found["text"].shape[1] == found["mask"].shape[1] == longest


def test_chosen_steps(tmp_path):
    collect(plan(steps=6), tmp_path / "all")
    chosen = dataclasses.replace(plan(steps=6), steps=(0, 4))
    collect(chosen, tmp_path / "some")
    whole, some = (Collected.open(tmp_path / name) for name in ("all", "some"))
    assert len(some) == 2 * len(TEXTS) == chosen.samples
    kept = {key(batch, i) for batch in some.read() for i in range(len(batch.c))}
    assert kept == {
        key(batch, i)
        for batch in whole.read()
        for i, step in enumerate(batch.step.tolist())
        if step in (0, 4)
    }


def key(batch, i):
    """All that is stored of one step."""
    tensors = (batch.c, batch.target, batch.given.x, batch.given.text, batch.given.sigma)
    return int(batch.step[i]), *(tensor[i].numpy().tobytes() for tensor in tensors)


@pytest.mark.parametrize("family", ["sd", SLOW_FAMILIES[1]])
def test_another_methods_effective_prediction(family, tmp_path):
    """Against `Levels.move`, of what W2SD did by another route: its latents after each step."""
    from w2sdiff import attach
    from w2sdiff.levels import Levels

    method = W2SD(weak=Guidance(1.5))
    collect(plan(family, method=method, steps=4), tmp_path)
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(model_folder(family))
    pipe.set_progress_bar_config(disable=True)
    after = []

    def look(_pipe, _i, _t, kwargs):
        after.append(kwargs["latents"])
        return kwargs

    data = Collected.open(tmp_path)
    text = data.shards[0].prompts[0]
    call = tiny.call_kwargs(family, steps=4, seed=TEXTS.index(text), prompt=text)
    call.pop("max_sequence_length", None)
    with attach(pipe, method):
        pipe(**call, callback_on_step_end=look)
    levels = Levels.from_scheduler(pipe.scheduler)
    batch = next(data.read())
    for i in range(4):
        x, target = batch.given.x[i : i + 1], batch.target[i : i + 1]
        close(levels.move(x, target, at=i, to=i + 1), after[i], by=2**-10 + 1e-4)


# --- again ----------------------------------------------------------------------------------------


def test_it_goes_on_where_it_stopped_and_the_bytes_are_the_same(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    collect(plan(), whole)
    asked = []
    summary = collect(plan(), stopped, stopping=lambda: len(asked) > 0, on_event=asked.append)
    assert (summary.made, summary.left) == (1, 2)
    with pytest.raises(InputError, match="1 of 3 shards"):
        Collected.open(stopped)
    summary = collect(plan(), stopped)
    assert (summary.found, summary.made) == (1, 2)
    assert shards(stopped) == shards(whole)
    summary = collect(plan(), stopped)  # the second of two runs that share a folder
    assert (summary.found, summary.made) == (3, 0)


def test_a_missing_or_cut_off_shard_is_made_again(tmp_path):
    collect(plan(), tmp_path)
    before = shards(tmp_path)
    first, second, _ = sorted(before)
    (tmp_path / first).unlink()
    (tmp_path / second).write_bytes(before[second][:100])
    assert collect(plan(), tmp_path).made == 2
    assert shards(tmp_path) == before


def test_killed_in_the_middle_of_a_shard(tmp_path):
    """What a process that dies leaves behind is no shard; the next run makes it."""
    import multiprocessing
    import os
    import signal

    def die_in_the_second_shard():
        steps = []  # three of the first shard, two that measure the cost, and then one

        def on_step(_done, _total):
            steps.append(1)
            if len(steps) == 6:
                os.kill(os.getpid(), signal.SIGKILL)

        collect(plan(), tmp_path / "killed", on_step=on_step)

    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs fork")
    worker = multiprocessing.get_context("fork").Process(target=die_in_the_second_shard)
    worker.start()
    worker.join(120)
    assert worker.exitcode == -signal.SIGKILL
    assert len(shards(tmp_path / "killed")) == 1
    summary = collect(plan(), tmp_path / "killed")
    assert (summary.found, summary.made) == (1, 2)
    collect(plan(), tmp_path / "whole")
    assert shards(tmp_path / "killed") == shards(tmp_path / "whole")


def test_more_prompts_go_on_in_the_same_folder(tmp_path):
    few = plan(rows=plan().rows[:3])
    collect(few, tmp_path)
    assert len(Collected.open(tmp_path)) == 9
    stopped = collect(plan(), tmp_path, stopping=lambda: True)
    assert (stopped.found, stopped.left) == (1, 2)
    with pytest.raises(InputError, match="1 of 3 shards"):
        Collected.open(tmp_path)  # the half shard of the shorter plan does not count
    summary = collect(plan(), tmp_path)
    assert (summary.found, summary.made) == (1, 2)
    assert sorted(texts_of(Collected.open(tmp_path))) == sorted(TEXTS)


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"steps": 4}, "settings"),
        pytest.param({"guidance": 3.0}, "settings", marks=pytest.mark.slow),
        pytest.param({"negative": "x"}, "settings", marks=pytest.mark.slow),
        ({"method": W2SD()}, "method"),
        ({"keep": Keep(parse_scorer("contrast"), 0.5)}, "keep"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_a_folder_of_another_plan_is_refused_and_left_alone(changes, differs, tmp_path):
    collect(plan(rows=plan().rows[:2]), tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match=f"collected otherwise.*{differs}.*another folder"):
        collect(plan(**changes), tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_folder_of_other_steps_is_refused(tmp_path):
    collect(plan(rows=plan().rows[:2]), tmp_path)
    with pytest.raises(InputError, match="it differs in steps"):
        collect(dataclasses.replace(plan(), steps=(0,)), tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"decides": 3}', '{"decides": null}'])
def test_a_damaged_manifest_is_not_written_over(text, tmp_path):
    (tmp_path / MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=f"{MANIFEST} is damaged"):
        collect(plan(), tmp_path)
    assert (tmp_path / MANIFEST).read_text("utf-8") == text


def test_a_plan_must_be_one():
    for changes, says in (
        ({"rows": ()}, "no prompts"),
        ({"shard": 0}, "at least 1 prompt per shard"),
    ):
        with pytest.raises(InputError, match=says):
            plan(**changes)
    for steps in ((3,), (-1,), ()):
        with pytest.raises(InputError, match="numbers from 0 to 2"):
            dataclasses.replace(plan(), steps=steps)


# --- guidance that is off -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "changes"), [("sd", {"guidance": 1.0}), ("pixart", {"guidance": 1.0})]
)
def test_without_guidance_there_is_nothing_to_collect(family, changes, tmp_path):
    with pytest.raises(UnsupportedError, match=r"off at this step.*guidance scale above 1"):
        collect(plan(family, **changes), tmp_path / "data")
    assert not shards(tmp_path / "data")


@pytest.mark.slow
def test_flux_without_true_guidance(tmp_path):
    base = plan("flux")
    settings = dataclasses.replace(base.settings, true_cfg=None, negative=None)
    with pytest.raises(UnsupportedError, match="true_cfg_scale"):
        collect(dataclasses.replace(base, settings=settings), tmp_path)


# --- the filter -----------------------------------------------------------------------------------


def drawn(of):
    with Studio(of.model, of.settings) as studio:
        return studio.draw(of.method, [shot for n in range(3) for shot in of.shots(n)])


def test_only_pictures_of_at_least_the_threshold_are_kept(tmp_path):
    scorer = parse_scorer("contrast")
    pictures = drawn(plan())
    scores = scorer.score([one.image for one in pictures], TEXTS)
    threshold = sorted(scores)[2]
    collect(plan(keep=Keep(scorer, float(threshold))), tmp_path)
    expected = [text for text, score in zip(TEXTS, scores, strict=True) if score >= threshold]
    data = Collected.open(tmp_path)
    assert sorted(texts_of(data)) == sorted(expected)
    assert 0 < len(expected) < len(TEXTS)
    collect(plan(), tmp_path / "all")
    sums = lambda folder: {  # noqa: E731
        round(float(c.double().sum()), 9) for b in Collected.open(folder).read() for c in b.c
    }
    assert sums(tmp_path) < sums(tmp_path / "all")
    collect(plan(keep=Keep(scorer, 1e9)), tmp_path / "none")
    with pytest.raises(InputError, match="worth keeping"):
        Collected.open(tmp_path / "none")


@pytest.mark.slow
def test_the_oracle_of_shapes_as_the_filter(tmp_path):
    settings = Settings(steps=6, guidance=3.0, device="cpu", dtype="float32")
    rows = load_set("shapes-train", limit=12).rows
    of = Plan(find_model("shapes-unet"), settings, Plain(), rows, shard=12)
    with Studio(of.model, of.settings) as studio:
        obeyed = [one.verdict.obeyed for one in studio.draw(Plain(), of.shots(0))]
    assert 0 < sum(obeyed) < 12
    kept = dataclasses.replace(of, keep=Keep(parse_scorer("shapes"), 1.0))
    collect(kept, tmp_path)
    data = Collected.open(tmp_path)
    assert list(data.shards[0].prompts) == [
        row.text for row, good in zip(rows, obeyed, strict=True) if good
    ]


# --- memory ---------------------------------------------------------------------------------------


class Short:
    """A pipeline part that has no memory for more than so many items."""

    def __init__(self, limit, error=torch.OutOfMemoryError):
        self.limit, self.error = limit, error

    def __call__(self, _module, args):
        if len(args[0]) > self.limit:
            raise self.error("CUDA out of memory")


def with_too_little(monkeypatch, unet=99, decoder=99):
    """Of the pipelines that are loaded from now on."""
    from w2sdiff.generate import draw

    own = draw.load_pipeline

    def load(model, settings):
        pipe = own(model, settings)
        pipe.unet.register_forward_pre_hook(Short(unet))
        pipe.vae.decoder.register_forward_pre_hook(Short(decoder))
        return pipe

    monkeypatch.setattr(draw, "load_pipeline", load)


@pytest.mark.parametrize(
    "limits",
    [
        {"unet": 6, "decoder": 1},  # the one that would mix up rows: halves fail at both places
        pytest.param({"decoder": 1}, marks=pytest.mark.slow),
        pytest.param({"unet": 2}, marks=pytest.mark.slow),
        pytest.param({"unet": 4}, marks=pytest.mark.slow),
        pytest.param({"decoder": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_where_the_memory_is_short_the_rows_stay_with_their_prompts(limits, tmp_path, monkeypatch):
    """Halves that found no memory while denoising, or only afterwards, while decoding."""
    keep = Keep(parse_scorer("contrast"), -1.0)
    collect(plan(shard=5, keep=keep), tmp_path / "enough")
    with_too_little(monkeypatch, **limits)
    collect(plan(shard=5, keep=keep), tmp_path / "short")
    one, other = (next(Collected.open(tmp_path / n).read()) for n in ("enough", "short"))
    assert texts_of(Collected.open(tmp_path / "short")) == TEXTS
    assert one.c.shape == other.c.shape
    for name in ("c", "target"):
        close(getattr(other, name), getattr(one, name), by=2**-10 + 1e-4)
    close(other.given.x, one.given.x, by=2**-10 + 1e-4)
    close(other.given.text, one.given.text, by=2**-10 + 1e-4)


@pytest.mark.slow
def test_not_even_one_picture_fits(tmp_path, monkeypatch):
    with_too_little(monkeypatch, unet=0)
    with pytest.raises(InputError, match=r"not even one picture fits.*out of memory"):
        collect(plan(keep=Keep(parse_scorer("contrast"), 0.0)), tmp_path)


@pytest.mark.slow
def test_without_a_filter_fewer_at_a_time_are_asked_for(tmp_path, monkeypatch):
    with_too_little(monkeypatch, unet=2)
    with pytest.raises(InputError, match=r"2 prompts at a time do not fit.*--shard"):
        collect(plan(), tmp_path)
    assert collect(plan(shard=1), tmp_path / "one").made == 5


# --- what it takes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("sd", {"steps": 10}),
        pytest.param("sd", {"steps": 1}, marks=pytest.mark.slow),
        pytest.param("sdxl", {"steps": 3}, marks=pytest.mark.slow),
        ("pixart", {"steps": 6}),
        pytest.param(
            "sd", {"steps": 6, "method": W2SD(weak=Guidance(1.0))}, marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_the_estimate_is_near_the_truth(family, changes, tmp_path):
    of = plan(family, shard=5, **changes)
    with Studio(of.model, of.settings) as studio:
        found = estimate(of, studio)
        assert studio.settings == of.settings
    collect(of, tmp_path)
    truth = sum(map(len, shards(tmp_path).values()))
    assert abs(found.bytes - truth) < 0.25 * truth
    assert found.samples == len(Collected.open(tmp_path))
    assert found.seconds > 0


@pytest.mark.slow
def test_the_estimate_of_chosen_steps(tmp_path):
    of = dataclasses.replace(plan(shard=5, steps=8), steps=(1, 2, 5))
    with Studio(of.model, of.settings) as studio:
        found = estimate(of, studio)
    collect(of, tmp_path)
    truth = sum(map(len, shards(tmp_path).values()))
    assert abs(found.bytes - truth) < 0.25 * truth


@pytest.mark.parametrize(
    "family", ["sd", *(pytest.param(f, marks=pytest.mark.slow) for f in ("pixart", "flux"))]
)
def test_the_cost_of_an_evaluation_is_that_of_one_call_of_one_branch(family, tmp_path):
    """Counted here on the network alone, called as the pipeline calls it."""
    from torch.utils.flop_counter import FlopCounterMode

    of, calls = plan(family), []
    with Studio(of.model, of.settings) as studio:
        network = studio.denoiser
        handle = network.register_forward_pre_hook(
            lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
        )
        found = evaluation_flops(studio, of.shots(0)[0])
        handle.remove()
        args, kwargs = calls[-1]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(*args, **kwargs)
    sample = args[0] if args else kwargs["hidden_states"]
    assert found == counter.get_total_flops() / len(sample) > 0


def test_the_manifest_says_what_the_folder_is(tmp_path):
    collect(plan(first_seed=3), tmp_path)
    about = json.loads((tmp_path / MANIFEST).read_text("utf-8"))
    assert (about["prompts"], about["shard"], about["first_seed"]) == (5, 2, 3)
    assert about["method"]["method"] == "plain"
    assert len(about["items"]) == 3

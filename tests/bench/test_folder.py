"""Folders from anywhere: read as they are laid out, refused where it would be a guess."""

from __future__ import annotations

import csv
import io
import json
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from w2sdiff.bench.folders import LAYOUTS, folder_results, read_folder
from w2sdiff.bench.folders.score import score_folder
from w2sdiff.bench.folders.scorefile import (
    NAME,
    Scored,
    read_scored,
    scores_csv,
    with_earlier,
    write_scored,
)
from w2sdiff.errors import InputError
from w2sdiff.imaging import png_bytes
from w2sdiff.jobs import Done, Failed, Item, Ledger, Task, run_local
from w2sdiff.prompts import PromptRow, PromptSet
from w2sdiff.scorers import parse_scorer

SATURATION = "saturation"


def draw(path, shade=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade % 256, shade // 256, 0)).save(path)
    return path


def prompt_set(ids, name="mine"):
    rows = tuple(PromptRow(i, f"prompt of {i}", {"category": "c"}) for i in ids)
    return PromptSet(name, rows, "", "", "", len(rows))


def pairs(listing):
    return [(entry.id, entry.path.name, entry.prompt) for entry in listing.entries]


def test_pictures_named_by_their_prompt(tmp_path):
    for name in ("b", "a", "c"):
        draw(tmp_path / f"{name}.png")
    found = read_folder(tmp_path, prompts=prompt_set(["c", "a", "b", "d"]))
    assert found.layout == "name"
    assert pairs(found)[0] == ("a", "a.png", "prompt of a")
    assert found.entries[0].category == "c"


@pytest.mark.parametrize("first", [0, 1])
def test_pictures_in_the_order_of_the_prompts_whatever_they_count_from(tmp_path, first):
    for number in range(first, first + 12):
        draw(tmp_path / f"{number}.jpg")
    found = read_folder(tmp_path, prompts=prompt_set([str(i) for i in range(1, 13)]))
    assert found.layout == "order"
    assert [(entry.id, entry.path.stem) for entry in found.entries] == [
        (str(i + 1), str(i + first)) for i in range(12)
    ]


def test_an_incomplete_folder_of_numbers_is_refused_not_guessed(tmp_path):
    for number in range(1, 11):  # "0.png" is missing, or counting begins at 1: nobody can tell
        draw(tmp_path / f"{number}.png")
    prompts = prompt_set([str(i) for i in range(1, 12)])
    with pytest.raises(InputError, match="10 pictures for the 11 prompts"):
        read_folder(tmp_path, prompts=prompts)
    assert read_folder(tmp_path, prompts=prompts, layout="name").entries[0].id == "1"


def test_a_picture_without_a_prompt_is_named_and_left_out(tmp_path):
    draw(tmp_path / "a.png")
    draw(tmp_path / "holiday.png")
    found = read_folder(tmp_path, prompts=prompt_set("ab"), layout="name")
    assert [entry.id for entry in found.entries] == ["a"]
    assert "holiday.png" in found.problems[0]


def test_geneval_layout(tmp_path):
    for number, text in enumerate(["a bench", "two cows"]):
        place = tmp_path / f"{number:05}"
        for sample in range(3):
            draw(place / "samples" / f"{sample:04}.png", 3 * number + sample)
        draw(place / "grid.png")
        (place / "metadata.jsonl").write_text(json.dumps({"tag": "counting", "prompt": text}))
    draw(tmp_path / "00002" / "samples" / "0000.png")
    (tmp_path / "00002" / "metadata.jsonl").write_text("[" * 5000)
    found = read_folder(tmp_path)
    assert found.layout == "geneval"
    assert [(e.id, e.prompt, e.replicate) for e in found.entries[2:4]] == [
        ("00000", "a bench", 2),
        ("00001", "two cows", 0),
    ]
    assert {entry.category for entry in found.entries} == {"counting"}
    assert len(found.problems) == 1
    assert "00002" in found.problems[0]


def test_hpsv2_layout_with_a_list_per_style_or_the_benchmark_set(tmp_path):
    for style in ("anime", "photo"):
        draw(tmp_path / style / "00000.jpg")
        draw(tmp_path / style / "00001.jpg")
    (tmp_path / "anime.json").write_text(json.dumps(["a fox", "an owl"]))
    (tmp_path / "photo.txt").write_text("a car\n")
    found = read_folder(tmp_path)
    assert found.layout == "hpsv2"
    assert [(e.id, e.prompt, e.category) for e in found.entries] == [
        ("anime/00000", "a fox", "anime"),
        ("anime/00001", "an owl", "anime"),
        ("photo/00000", "a car", "photo"),
    ]
    assert found.problems == ("photo/00001.jpg: no prompt has this number",)
    both = prompt_set(["anime/00001", "photo/00000"])
    assert len(read_folder(tmp_path, prompts=both).entries) == 2


def test_a_table_of_path_and_prompt_may_point_anywhere_to_read(tmp_path):
    draw(tmp_path / "elsewhere" / "x.png")
    file = tmp_path / "here" / "list.csv"
    file.parent.mkdir()
    file.write_text('id,path,prompt,arm,category\nq,../elsewhere/x.png,"=1+1",w2sd,odd\n')
    [entry] = read_folder(file).entries
    assert (entry.id, entry.prompt, entry.arm, entry.category) == ("q", "=1+1", "w2sd", "odd")
    assert entry.path.samefile(tmp_path / "elsewhere" / "x.png")
    file.write_text("id,prompt\nq,x\n")
    with pytest.raises(InputError, match="a column named path"):
        read_folder(file)


def picture_bytes(shade, prompt, method="plain"):
    image = Image.new("RGB", (8, 8), (shade, 0, 0))
    return png_bytes(image, {"prompt": prompt, "method": {"method": method}})


def make_ledger(folder, prompts, seeds=(0, 1)):
    items = [Item({"prompt": prompt, "seed": seed}) for prompt in prompts for seed in seeds]

    def work(task):
        [item] = task.items
        prompt, seed = item.spec["prompt"], item.spec["seed"]
        if prompt == "fails":
            return [Failed("no picture")]
        facts = {"arm": "plain", "prompt_id": str(1 + prompts.index(prompt))}
        name = f"{item.key[:8]}.png"
        return [Done({name: picture_bytes(50 * prompts.index(prompt) + seed, prompt)}, facts)]

    with Ledger(folder) as ledger:
        run_local(ledger, [Task((item,)) for item in items], work)


def test_our_own_folder_by_its_records_and_without_them(tmp_path):
    make_ledger(tmp_path / "out", ["one", "fails", "three"])
    draw(tmp_path / "out" / "sheet-compare.png")  # no record: not one of the pictures
    found = read_folder(tmp_path / "out")
    assert found.layout == "ledger"
    assert [(e.id, e.prompt, e.replicate, e.arm) for e in found.entries] == [
        ("1", "one", 0, "plain"),
        ("1", "one", 1, "plain"),
        ("3", "three", 0, "plain"),
        ("3", "three", 1, "plain"),
    ]
    assert len(found.problems) == 2
    copied = tmp_path / "copied"
    copied.mkdir()
    for entry in found.entries:
        (copied / entry.path.name).write_bytes(entry.path.read_bytes())
    again = read_folder(copied)
    assert again.layout == "png"
    assert sorted((e.prompt, e.arm) for e in again.entries) == [
        *[("one", "plain")] * 2,
        *[("three", "plain")] * 2,
    ]


def test_one_id_with_two_prompts_becomes_two_ids(tmp_path):
    make_ledger(tmp_path, ["one"])
    make_ledger(tmp_path, ["another"])
    ids = {entry.id for entry in read_folder(tmp_path).entries}
    assert len(ids) == 2
    assert all(name.startswith("1-") for name in ids)


def test_pictures_alone_are_enough_for_scorers_that_read_no_prompt(tmp_path):
    draw(tmp_path / "x.png")
    found = read_folder(tmp_path)
    assert (found.layout, found.has_prompts) == ("bare", False)


@pytest.mark.parametrize(
    ("make", "layout", "message"),
    [
        (lambda _: None, "auto", "no picture"),
        (lambda p: (p / "notes.txt").write_text("x"), "bare", "no picture"),
        (lambda _: None, "hpvs2", "Did you mean 'hpsv2'"),
        (lambda p: draw(p / "a.png"), "name", "--prompts"),
        (lambda p: draw(p / "a.png"), "table", r"\.csv"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, make, layout, message):
    make(tmp_path)
    with pytest.raises(InputError, match=message):
        read_folder(tmp_path, layout=layout)


def test_a_place_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no"):
        read_folder(tmp_path / "nowhere")
    (tmp_path / "file.png").write_bytes(b"")
    with pytest.raises(InputError, match="expected a prompt file"):
        read_folder(tmp_path / "file.png")


def test_links_that_lead_in_circles_are_harmless(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    draw(tmp_path / "a.png")
    listing = read_folder(tmp_path)
    _, scored = score_folder(listing, [parse_scorer(SATURATION)], Ledger(tmp_path / "scores"))
    reasons = {
        e.path.name: s[SATURATION].reason
        for e, s in zip(scored.listing.entries, scored.scores, strict=True)
    }
    assert reasons["a.png"] is None
    assert "self.png" in reasons["self.png"]


# From a scored folder to results.


def scored_folder(folder, shades, *, prompts="abcd", broken=(), scorer=SATURATION):
    for name, shade in zip(prompts, shades, strict=True):
        path = draw(folder / f"{name}.png", shade)
        if name in broken:
            path.write_bytes(path.read_bytes()[:45])
    listing = read_folder(folder, prompts=prompt_set(prompts), layout="name")
    with Ledger(folder / "scores") as ledger:
        _, scored = score_folder(listing, [parse_scorer(scorer)], ledger)
    write_scored(scored, folder / "scores")
    return scored


def test_a_scored_folder_is_read_back_as_it_was_written(tmp_path):
    scored = scored_folder(tmp_path, [1, 2, 3, 4], broken="c")
    again = read_scored(tmp_path)
    assert again.scorers == scored.scorers
    assert again.scores == scored.scores
    assert [e.id for e in again.listing.entries] == [e.id for e in scored.listing.entries]
    assert all(e.path.is_file() for e in again.listing.entries)
    first = (tmp_path / "scores" / NAME).read_bytes()
    write_scored(again, tmp_path / "scores")
    assert (tmp_path / "scores" / NAME).read_bytes() == first


def test_two_folders_are_two_arms_paired_by_prompt(tmp_path):
    scored_folder(tmp_path / "ours", [10, 20, 30, 40])
    scored_folder(tmp_path / "theirs", [11, 21, 31], prompts="abc", broken="b")
    results = folder_results([tmp_path / "ours", tmp_path / "theirs"])
    assert [arm.name for arm in results.arms] == ["ours", "theirs"]
    assert results.values[SATURATION].shape == (2, 4, 1)
    samples = {(s.arm, results.prompts[s.prompt].id): s for s in results.samples}
    assert samples[1, "d"].status == "missing"
    assert "b.png" in samples[1, "b"].flags[0]
    assert samples[1, "b"].scores == {}
    for sample in results.samples:
        assert sample.image is None or (results.folder / sample.image).is_file()


def test_replicates_and_arms_of_one_folder_are_kept_apart(tmp_path):
    make_ledger(tmp_path / "out", ["one", "two"], seeds=(0, 1, 2))
    listing = read_folder(tmp_path / "out")
    scorers = [parse_scorer(SATURATION), parse_scorer("diversity")]
    summary, scored = score_folder(listing, scorers, Ledger(tmp_path / "out" / "scores"))
    write_scored(scored, tmp_path / "out" / "scores")
    results = folder_results([tmp_path / "out"])
    assert summary.made == 6 + 2  # a score per picture, and one of diversity per prompt
    assert (results.replicates, len(results.prompts), len(results.samples)) == (3, 2, 6)
    assert all({SATURATION, "diversity"} == set(sample.scores) for sample in results.samples)


def test_equal_pictures_of_different_prompts_are_flagged(tmp_path):
    scored_folder(tmp_path, [5, 6, 5, 7])
    flags = {s.prompt: s.flags for s in folder_results([tmp_path]).samples if s.flags}
    assert flags == {2: (f"same picture as {tmp_path.name}, prompt a",)}


def test_two_recipes_under_one_name_are_never_joined(tmp_path):
    scored_folder(tmp_path / "a", [1, 2, 3, 4])
    scored_folder(tmp_path / "b", [1, 2, 3, 4])
    file = tmp_path / "b" / "scores" / NAME
    file.write_text(file.read_text().replace(read_scored(file.parent).scorers[0].recipe, "0" * 64))
    with pytest.raises(InputError, match="a and b were scored by two recipes of saturation"):
        folder_results([tmp_path / "a", tmp_path / "b"])


def test_two_prompts_under_one_id_are_never_paired(tmp_path):
    scored_folder(tmp_path / "a", [1, 2, 3, 4])
    scored_folder(tmp_path / "b", [1, 2, 3, 4])
    file = tmp_path / "b" / "scores" / NAME
    file.write_text(file.read_text().replace("prompt of c", "another prompt"))
    with pytest.raises(InputError, match="the prompt 'c' is 'prompt of c' in one folder"):
        folder_results([tmp_path / "a", tmp_path / "b"])


def test_scores_of_an_earlier_time_are_kept_for_the_same_pictures(tmp_path):
    first = scored_folder(tmp_path, [1, 2, 3, 4])
    second = scored_folder(tmp_path, [1, 2, 3, 4], scorer="contrast")
    both = with_earlier(second, first)
    assert [scorer.name for scorer in both.scorers] == [SATURATION, "contrast"]
    assert all(set(scores) == {SATURATION, "contrast"} for scores in both.scores)
    other = scored_folder(tmp_path, [9, 2, 3, 4], scorer="contrast")
    assert [scorer.name for scorer in with_earlier(other, first).scorers] == ["contrast"]


def test_no_cell_of_the_table_is_a_formula(tmp_path):
    file = tmp_path / "list.csv"
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(["id", "path", "prompt", "arm", "category"])
    writer.writerow(["=1+1", draw(tmp_path / "=x.png").name, "@SUM(A1)", "-arm", "+cat"])
    file.write_text(out.getvalue())
    listing = read_folder(file)
    _, scored = score_folder(listing, [parse_scorer(SATURATION)], Ledger(tmp_path / "scores"))
    scored = Scored(scored.listing, scored.scorers, scored.scores)
    rows = list(csv.reader(io.StringIO(scores_csv(scored), newline="")))
    assert len(rows) == 2
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "-", "@"))]


# Whatever lies in a folder: a listing or one clear refusal, and nothing written.

NAMES = st.one_of(
    st.sampled_from(
        ["a.png", "1.jpg", "00000", "metadata.jsonl", "samples", "records", "anime", "anime.json"]
    ),
    st.sampled_from(
        ["\x1b[2J.png", "=cmd.png", "a\nb.png", "..png", "ü.PNG", "'<b>.webp", "-x.gif"]
    ),
    st.text(
        st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12
    ),
)
CONTENT = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"{}", b"[]", b'{"prompt": 1}', b'["a"]', b"cos\nsystem\n.", b"[" * 2000]),
    st.sampled_from([picture_bytes(1, "a cat"), picture_bytes(2, "\u202e=x" * 9)]),
)
TREE = st.recursive(CONTENT, lambda inner: st.dictionaries(NAMES, inner, max_size=4), max_leaves=9)


def build(place, tree):
    if isinstance(tree, bytes):
        place.write_bytes(tree)
        return
    place.mkdir()
    for name, inner in tree.items():
        if name not in (".", "..") and len(name.encode()) < 200:
            build(place / name, inner)


def snapshot(folder):
    return {path.relative_to(folder) for path in folder.rglob("*")}


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(NAMES, TREE, max_size=5), st.sampled_from(["auto", *LAYOUTS]), st.booleans())
def test_any_folder_is_listed_or_refused_in_a_line_and_nothing_is_written(
    tmp_path_factory, tree, layout, with_prompts
):
    root = tmp_path_factory.mktemp("fuzz")
    build(root / "in", tree)
    before = snapshot(root)
    prompts = prompt_set(["a", "../../etc", "x\ny"]) if with_prompts else None
    try:
        found = read_folder(root / "in", prompts=prompts, layout=layout)
    except InputError:
        pass
    else:
        assert found.entries
        for entry in found.entries:
            assert entry.id.isprintable()
            json.dumps([entry.id, entry.prompt]).encode()
            assert entry.path.resolve().is_relative_to((root / "in").resolve())
        assert all(problem.isprintable() for problem in found.problems)
    assert snapshot(root) == before


@settings(max_examples=100)
@given(st.data())
def test_a_damaged_scored_file_is_refused_in_a_line(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("fuzz")
    scored = data.draw(st.sampled_from(["cut", "swap", "json"]))
    whole = json.dumps(
        {
            "schema": 1,
            "layout": "bare",
            "problems": [],
            "scorers": [],
            "pictures": [
                {
                    **{"id": "a", "prompt": "", "category": "", "arm": "", "replicate": 0},
                    **{"sha256": "", "path": "../a.png", "scores": {}},
                }
            ],
        }
    )
    if scored == "cut":
        text = whole[: data.draw(st.integers(0, len(whole) - 1))]
    elif scored == "swap":
        start = data.draw(st.integers(0, len(whole) - 1))
        text = whole[:start] + data.draw(st.text(max_size=6)) + whole[start + 1 :]
    else:
        junk = st.recursive(
            st.none() | st.integers() | st.text(max_size=3),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
            max_leaves=6,
        )
        text = json.dumps(
            {
                **json.loads(whole),
                **data.draw(
                    st.dictionaries(
                        st.sampled_from(["pictures", "scorers", "problems", "layout"]), junk
                    )
                ),
            }
        )
    (root / NAME).write_text(text, encoding="utf-8")
    with suppress(InputError):
        read_scored(root)


HOSTILE = st.one_of(
    st.sampled_from(
        [
            "../../x",
            "/etc/passwd",
            "a\x1b]0;b",
            "=1+1",
            "\u202eevil",
            "<script>",
            "C:\\x",
            "x" * 300,
        ]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(HOSTILE, HOSTILE, HOSTILE), min_size=1, max_size=4))
def test_whatever_ids_prompts_and_arms_say_only_the_output_folder_is_written(
    tmp_path_factory, rows
):
    root = tmp_path_factory.mktemp("fuzz")
    draw(root / "a.png")
    lines = [
        json.dumps({"id": name, "prompt": prompt, "arm": arm, "path": "a.png"})
        for name, prompt, arm in rows
    ]
    (root / "list.jsonl").write_text("\n".join(lines), encoding="utf-8")
    before = snapshot(root)
    with suppress(InputError):
        listing = read_folder(root / "list.jsonl")
        with Ledger(root / "out") as ledger:
            _, scored = score_folder(listing, [parse_scorer(SATURATION)], ledger)
        write_scored(scored, root / "out")
        scores_csv(scored).encode()
        results = folder_results([root / "out"])
        assert {prompt.text for prompt in results.prompts} <= {row[1].strip() for row in rows}
    assert {path for path in snapshot(root) if path.parts[0] != "out"} == before


def test_a_prompt_of_a_megabyte_is_refused_by_line(tmp_path):
    draw(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text(f"path,prompt\na.png,{'x' * 1_000_000}\n")
    with pytest.raises(InputError, match=r"list\.csv, line 2: longer than"):
        read_folder(tmp_path / "list.csv")


@pytest.mark.slow
def test_a_run_folder_gives_its_arms_and_finds_its_scores(tmp_path, monkeypatch):
    from w2sdiff.cli import main

    monkeypatch.chdir(tmp_path)
    experiment = {
        **{"title": "tiny", "model": "shapes-unet", "steps": 1, "guidance": 3.0},
        **{"prompts": "shapes", "limit": 2, "scorers": [SATURATION], "rivals": False},
        "arms": {"one": {"method": "plain"}, "two": {"method": "plain", "steps": 2}},
    }
    (tmp_path / "tiny.json").write_text(json.dumps(experiment))
    assert main(["bench", "tiny.json", "--out", "run", "-q", "--no-report"]) == 0
    listing = read_folder(tmp_path / "run")
    assert listing.layout == "run"
    assert [(e.arm, e.id, e.category) for e in listing.entries] == [
        ("one", "1", "single"),
        ("one", "2", "counting"),
        ("two", "1", "single"),
        ("two", "2", "counting"),
    ]
    with Ledger(tmp_path / "run" / "scores") as ledger:
        summary, _ = score_folder(listing, [parse_scorer(SATURATION)], ledger)
    assert (summary.found, summary.made) == (4, 0)

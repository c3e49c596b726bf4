"""Prompt sets: the known ones are what they are said to be, and nothing else passes for them."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from conftest import SHARED
from hypothesis import given
from hypothesis import strategies as st

from w2sdiff.errors import InputError
from w2sdiff.prompts import (
    BUILT_IN,
    KNOWN,
    fetch_set,
    formats,
    index_seed,
    load_set,
    seed_of,
)
from w2sdiff.prompts import fetch as fetch_module
from w2sdiff.prompts.known import KnownFile, KnownSet
from w2sdiff.shapes.captions import CATEGORIES, parse

DATA = SHARED / "data" / "prompts"
IN_DATA = [
    name
    for name, known in KNOWN.items()
    if not name.startswith(("drawbench", "pickapic", "hpdv2-benchmark", "coco"))
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "w2sdiff" / "prompts"


@pytest.fixture
def data():
    if not DATA.is_dir():
        pytest.skip(f"no prompt sets at {DATA}; a clone does not hold them")
    return DATA


@pytest.mark.parametrize("name", IN_DATA)
def test_known_sets_have_their_number_of_prompts_and_ids_that_are_unique(data, name):
    found = load_set(name, folder=data)
    assert len(found.rows) == found.count == KNOWN[name].count
    assert len({row.id for row in found.rows}) == found.count
    assert all(row.text == row.text.strip() != "" for row in found.rows)
    assert found.licence in ("Apache-2.0", "MIT")


def categories(name, data):
    return Counter(row.columns.get("category", "") for row in load_set(name, folder=data).rows)


def test_known_sets_have_their_categories(data):
    assert categories("geneval", data) == {
        "single_object": 80,
        "two_object": 99,
        "counting": 80,
        "colors": 94,
        "position": 100,
        "color_attr": 100,
    }
    assert set(categories("t2i-compbench", data).values()) == {300}
    assert len(categories("t2i-compbench", data)) == 8
    assert categories("partiprompts", data)["World Knowledge"] == 214
    assert categories("t2i-compbench-3d-spatial", data) == {"3d_spatial": 300}
    assert categories("dpg-bench", data) == {"": 1065}


def test_known_sets_begin_and_end_as_published(data):
    parti = load_set("partiprompts", folder=data).rows
    assert (parti[0].text, parti[-1].text) == (
        "bond",
        "a series of musical notes on a computer screen",
    )
    assert '"Fly an airplane"' in parti[276].text  # quotes are text there
    [bench] = load_set("geneval", folder=data, limit=1).rows
    assert (bench.id, bench.text) == ("00000", "a photo of a bench")
    assert load_set("t2i-compbench", folder=data).rows[300].id == "shape-1"


def test_a_limit_is_a_prefix_and_says_what_it_is_a_prefix_of(data):
    whole, part = (load_set("geneval", folder=data, limit=n) for n in (None, 7))
    assert part.rows == whole.rows[:7]
    assert (part.sha256, part.count) == (whole.sha256, 553)
    with pytest.raises(InputError, match="at least 1"):
        load_set("shapes", limit=0)


def test_a_file_that_is_not_the_known_one_is_refused_by_name(data, tmp_path):
    text = (data / "partiprompts.tsv").read_bytes()
    (tmp_path / "partiprompts.tsv").write_bytes(text.replace(b"bond", b"bund", 1))
    with pytest.raises(InputError, match=r"partiprompts\.tsv is not the known .* fab29e41"):
        load_set("partiprompts", folder=tmp_path)
    (tmp_path / "partiprompts.tsv").write_bytes(text)
    assert load_set("partiprompts", folder=tmp_path).count == 1632


def test_the_cache_is_looked_in_after_the_folder(data, tmp_path, cache):
    with pytest.raises(InputError, match="w2sdiff prompts fetch geneval"):
        load_set("geneval", folder=tmp_path)
    cache.mkdir(parents=True)
    name = KNOWN["geneval"].files[0].other_names[0]
    (cache / name).write_bytes((data / "geneval_evaluation_metadata.jsonl").read_bytes())
    assert load_set("geneval", folder=tmp_path).count == 553


def test_names_and_files_are_told_apart(tmp_path):
    with pytest.raises(InputError, match="Did you mean 'drawbench'"):
        load_set("drawbnch")
    with pytest.raises(InputError, match="put it there yourself"):
        load_set("coco-val2017")
    file = tmp_path / "mine.csv"
    file.write_text("id,prompt,category\nx,a cat,animals\ny,a car,things\n")
    mine = load_set(file)
    assert (mine.name, [row.id for row in mine.rows]) == ("mine", ["x", "y"])
    assert mine.rows[1].columns["category"] == "things"
    moved = tmp_path / "moved.jsonl"
    moved.write_text(
        "\n".join(json.dumps({"id": r.id, "prompt": r.text, **r.columns}) for r in mine.rows)
    )
    assert load_set(moved).sha256 == mine.sha256  # equal prompts, whatever the container


@pytest.mark.parametrize("n", [4, 40, 1000])
def test_every_prefix_of_the_shapes_set_is_balanced(n):
    rows = load_set("shapes", limit=n).rows
    assert Counter(row.columns["category"] for row in rows) == dict.fromkeys(CATEGORIES, n // 4)
    for row in rows[:40]:
        assert parse(row.text).category == row.columns["category"]


def test_built_in_sets_never_change(tmp_path):
    assert {name: load_set(name).sha256[:16] for name in BUILT_IN} == {
        "shapes": "2824e72000b394fc",
        "shapes-open": "3cc5fa383b0e42a9",
        "shapes-train": "3a780cc070bc780a",
    }
    # As it was before it had the column "vague": the same ids, prompts and other columns.
    before = tmp_path / "before.jsonl"
    rows = [
        (r, {k: v for k, v in r.columns.items() if k != "vague"}) for r in load_set("shapes").rows
    ]
    lines = [json.dumps({"id": r.id, "prompt": r.text, **columns}) for r, columns in rows]
    before.write_text("\n".join(lines))
    assert load_set(before).sha256[:16] == "198cb1becc5430f5"


def test_a_vague_caption_demands_a_part_of_the_same():
    for row in load_set("shapes", limit=100).rows:
        assert parse(row.columns["vague"]) == parse(row.text).vague


def test_open_captions_leave_something_open():
    for row in load_set("shapes-open").rows:
        assert parse(row.text).is_open


# The formats of sets that no clone may hold, as their files are described.


def test_drawbench(tmp_path):
    file = tmp_path / "drawbench.csv"
    file.write_text('Prompts,Category\n"A red, car",Colors\nHovering,Gary Marcus et al. \n')
    rows = formats.drawbench([file])
    assert [(row.text, row.columns["category"]) for row in rows] == [
        ("A red, car", "Colors"),
        ("Hovering", "Gary Marcus et al."),
    ]


def test_pickapic_drops_the_empty_row_and_its_first_hundred_are_one_row_longer(tmp_path):
    lines = ["序号,caption,caption_zh,备注"]
    lines += [f'{i},"{"" if i == 87 else f"prompt {i}, x"}",中文\u2028,' for i in range(500)]
    file = tmp_path / "p.csv"
    file.write_bytes("\ufeff".encode() + "\r\n".join(lines).encode())
    rows = formats.pickapic([file])
    assert len(rows) == KNOWN["pickapic-500"].count == 499
    hundred = rows[: KNOWN["pickapic-100"].first]
    assert (len(hundred), hundred[-1].id, hundred[87].id) == (100, "100", "88")


def test_coco_takes_the_first_caption_of_every_picture(tmp_path):
    entries = [(5, 2, "late"), (3, 1, "b"), (1, 2, " early "), (4, 1, "c")]
    names = ("id", "image_id", "caption")
    content = {"annotations": [dict(zip(names, entry, strict=True)) for entry in entries]}
    file = tmp_path / "c.json"
    file.write_text(json.dumps(content))
    assert [(row.id, row.text) for row in formats.coco([file])] == [("1", "b"), ("2", "early")]


def test_styles(tmp_path):
    file = tmp_path / "anime.json"
    file.write_text(json.dumps(["a", "b "]))
    rows = formats.styles([file])
    assert [(row.id, row.text, row.columns["category"]) for row in rows] == [
        ("anime/00000", "a", "anime"),
        ("anime/00001", "b", "anime"),
    ]


@pytest.mark.parametrize("content", [b"\xff", b"[1]", b"{}", b"[" * 100_000, b"null", b'"x"'])
@pytest.mark.parametrize("read", [formats.coco, formats.styles])
def test_what_is_not_of_the_format_is_refused_by_name(tmp_path, content, read):
    file = tmp_path / "hostile.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"hostile\.json"):
        read([file])


# Fetching.


@pytest.fixture
def published(data, monkeypatch):
    """Addresses and what is published there, made from the kept forms."""
    files = {}
    for known in KNOWN.values():
        for file in known.files:
            if file.url and file.sha256 and (data / file.name).exists() and not file.convert:
                files[file.url] = (data / file.name).read_bytes()
    entries = [json.loads(line) for line in (data / "imagereward_test466.jsonl").open()]
    [test] = KNOWN["imagereward-466"].files
    files[test.url] = json.dumps(
        [{**entry, "ranking": [1]} for entry in entries], indent=4
    ).encode()
    prompts = (data / "hpdv2_test400.txt").read_text("utf-8").splitlines()
    lines = ["\ufeff序号,caption,caption_zh,备注", *(f"{i},{p}" for i, p in enumerate(prompts))]
    [hpd] = KNOWN["hpdv2-test400"].files
    files[hpd.url] = "\n".join(lines).encode()
    return files


@pytest.mark.parametrize("name", ["t2i-compbench", "imagereward-466", "hpdv2-test400", "geneval"])
def test_what_is_fetched_is_checked_kept_and_found(published, cache, name):
    paths = fetch_set(name, get=published.__getitem__)
    assert all(path.is_relative_to(cache) and path.is_file() for path in paths)
    assert load_set(name).count == KNOWN[name].count


@pytest.mark.parametrize("name", ["geneval", "imagereward-466", "hpdv2-test400"])
@pytest.mark.parametrize("answer", [b"", b"<html>404</html>", b"\xff\xfe", b"[1, 2]", b"[]"])
def test_what_is_not_the_known_file_is_not_kept(cache, name, answer):
    with pytest.raises(InputError, match="https://"):
        fetch_set(name, get=lambda _url: answer)
    assert not cache.exists() or not list(cache.rglob("*.*"))


def test_what_has_no_address_is_not_fetched():
    with pytest.raises(InputError, match=r"put captions_val2017\.json into"):
        fetch_set("coco-val2017")
    with pytest.raises(InputError, match="Unknown prompt set"):
        fetch_set("../../etc/passwd")


@pytest.mark.parametrize("url", ["http://example.org/x", "file:///etc/passwd", "ftp://x/y", ""])
def test_only_https_is_fetched_and_no_redirect_leads_elsewhere(url):
    with pytest.raises(InputError, match="https"):
        fetch_module._https(url)
    with pytest.raises(InputError, match="https"):
        fetch_module._OnlyHttps().redirect_request(None, None, 302, "", None, url)


def test_the_table_is_pinned_and_every_name_is_plain():
    for known in KNOWN.values():
        assert isinstance(known, KnownSet)
        for file in known.files:
            assert isinstance(file, KnownFile)
            assert ".." not in file.name
            assert file.url is None or file.url.startswith("https://")
            if file.url and "githubusercontent" in file.url:
                assert file.sha256
                assert file.size


# Seeds.


@given(st.text(), st.text(min_size=1), st.integers(0, 1000))
def test_seeds_are_a_generators_and_differ_where_anything_differs(name, prompt, replicate):
    seed = seed_of(name, prompt, replicate)
    assert 0 <= seed < 2**63
    assert seed == seed_of(name, prompt, replicate)
    others = {
        seed_of(name + "x", prompt, replicate),
        seed_of(name, prompt + "x", replicate),
        seed_of(name, prompt, replicate + 1),
        seed_of(name + prompt, "", replicate),
    }
    assert seed not in others


def test_the_published_convention_counts_prompts_and_replicates_never_meet():
    seeds = [index_seed(i, r, 100) for r in range(3) for i in range(100)]
    assert seeds == list(range(300))
    with pytest.raises(InputError, match="below 100"):
        index_seed(100, 0, 100)
    with pytest.raises(InputError, match="at least 0"):
        seed_of("a", "b", -1)


# The set to collect on.


def test_prompts_to_train_on_hold_nothing_back_that_training_held_back():
    """No caption of it demands a combination that is asked for to test what was not seen."""
    from w2sdiff.shapes.captions import parse
    from w2sdiff.shapes.sampling import completions, is_held_out

    rows = load_set("shapes-train").rows
    assert len(rows) == 20_000
    captions = {row.text: parse(row.text) for row in rows}
    for text, caption in captions.items():
        fillings = completions(caption)
        assert not any(map(is_held_out, fillings)), text
    tested = load_set("shapes").rows
    held_out = {row.text for row in tested if row.columns["held_out"] == "yes"}
    assert held_out
    assert not held_out & captions.keys()


def test_prompts_to_train_on_are_the_same_every_time_and_of_every_category():
    first, again = load_set("shapes-train"), load_set("shapes-train", limit=50)
    assert first.rows[:50] == again.rows
    assert (first.sha256, first.count) == (again.sha256, again.count)
    categories = {row.columns["category"] for row in first.rows}
    assert categories == {"single", "counting", "colours", "position"}
    assert len({row.id for row in first.rows}) == len(first.rows)

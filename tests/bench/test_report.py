"""The report as a file: what stands in it, what cannot get out of it, what it costs."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from bench.made import ARMS, SCORERS, made_prompts, made_results
from PIL import Image

from w2sdiff.bench.report import write_report
from w2sdiff.bench.report.thumbnails import thumbnail
from w2sdiff.bench.results import ArmFacts, PromptFacts
from w2sdiff.bench.stats.analyse import analyse
from w2sdiff.errors import InputError
from w2sdiff.imaging import png_bytes

HOSTILE = (
    '</script><script>document.title="owned"</script>',
    '<img src=x onerror="alert(1)">',
    "quotes \" ' ` and ${1} {{ 7*7 }} {% raw %} <!-- & -->",
    "line\u2028and paragraph\u2029separators, nul \x00, right to left \u202e",
    "a lone surrogate \ud800",
    "javascript:alert(1)",
)


class Parsed(HTMLParser):
    """Elements with their attributes, and the text of each script and of all the rest."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self.words, self._script = [], [], "", None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._script = (tag, dict(attrs))

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self._script = None

    def handle_data(self, data):
        if self._script:
            self.scripts.append((*self._script, data))
        else:
            self.words += f" {data}"

    def block(self, name):
        return next(json.loads(t) for _, attrs, t in self.scripts if attrs.get("id") == name)


def small(folder, **options):
    """A run with one scorer: drawing is what takes the time."""
    return made_results(folder, **{"prompts": 2, "scorers": SCORERS[:1], **options})


def page_of(results, folder, **options):
    path = write_report(results, analyse(results, draws=200), folder, **options)[0]
    return path.read_text("utf-8"), Parsed(path.read_text("utf-8"))


def test_page_holds_verdicts_numbers_and_counts(tmp_path):
    results = made_results(
        tmp_path, gains={("w2sd", "hpsv2.1"): 1.5}, missing=[(1, 3, 0)], failed=[(2, 5, 0)]
    )
    analysis = analyse(results, draws=200)
    written = write_report(results, analysis, tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in written] == [
        "index.html",
        "plots/quality.png",
        "plots/wins.png",
    ]
    page = Parsed(written[0].read_text("utf-8"))
    words = " ".join(page.words.split())
    for judgement in analysis.judgements:
        assert " ".join(judgement.sentence.split()) in words
    for scorer in SCORERS:
        assert scorer.name in words
        assert scorer.recipe in words
    assert "failed: out of memory: 1" in words
    counts = re.findall(r"w2sd (\d+) (\d+) (\d+) (\d+) (\d+)", words)
    assert ("24", "23", "1", "0", "0") in counts
    for plot in written[1:]:
        assert Image.open(plot).width > 500


def test_rows_hold_the_scores_and_pictures_of_the_run(tmp_path):
    results = made_results(
        tmp_path, scorers=SCORERS[1:2], prompts=5, replicates=2, missing=[(1, 3, 0)]
    )
    _, page = page_of(results, tmp_path)
    data = page.block("data")
    assert len(data["rows"]) == 10
    values = results.values["aesthetic"]
    for n, row in enumerate(data["rows"]):
        prompt, replicate = divmod(n, 2)
        assert (row["text"], row["replicate"]) == (results.prompts[prompt].text, replicate)
        expected = [None if np.isnan(v) else v for v in values[:, prompt, replicate]]
        assert row["scores"]["aesthetic"] == [v and pytest.approx(v, rel=1e-5) for v in expected]
    block = page.block("pictures-6")
    assert block[1] is None
    assert data["rows"][6]["cells"][1] == {"status": "missing"}
    url, shrunk = block[2]
    assert not shrunk
    inside = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
    there = Image.open(tmp_path / data["rows"][6]["cells"][2]["href"]).convert("RGB")
    assert np.array_equal(np.asarray(inside), np.asarray(there))


def test_words_of_users_are_words_wherever_they_stand(tmp_path):
    arms = [
        dataclasses.replace(arm, name=f"{arm.name} {text}", text=text)
        for arm, text in zip(ARMS[:2], HOSTILE, strict=False)
    ]
    scorers = [
        dataclasses.replace(scorer, name=f"{scorer.name} {text}")
        for scorer, text in zip(SCORERS[:2], HOSTILE, strict=False)
    ]
    prompts = [
        PromptFacts(f"{n} {text}", text * 2, f"{n % 2} {text}") for n, text in enumerate(HOSTILE)
    ]
    results = made_results(
        tmp_path, arms=arms, prompts=prompts, scorers=scorers, title=HOSTILE[0] + HOSTILE[4]
    )
    odd = dataclasses.replace(results.samples[0], flags=HOSTILE)
    failed = dataclasses.replace(results.samples[1], status="failed", reason=HOSTILE[0])
    provenance = {text.replace("\ud800", ""): text for text in HOSTILE}
    results = dataclasses.replace(
        results, samples=(odd, failed, *results.samples[2:]), provenance=provenance
    )
    text, page = page_of(results, tmp_path)
    made = Parsed(write_report(*quiet(tmp_path / "quiet"))[0].read_text("utf-8"))
    # The same kinds of elements and attributes as with harmless words, and not one more script.
    kinds = {(tag, name) for tag, attrs in page.elements for name in attrs}
    assert kinds <= {(tag, name) for tag, attrs in made.elements for name in attrs}
    run = [t for tag, attrs, t in page.scripts if tag == "script" and "type" not in attrs]
    assert len(run) == 1
    assert "onerror" not in " ".join(name for _, attrs in page.elements for name in attrs)
    assert "\u2028" not in "".join(t for _, _, t in page.scripts)
    assert [row["text"] for row in page.block("data")["rows"]] == [p.text for p in prompts]
    assert "49" not in re.findall(r"\{\{ 7\*7 \}\}|49(?= \{%)", text)


def quiet(folder):
    results = small(
        folder, prompts=24, scorers=SCORERS[:2], missing=[(0, 1, 0)], failed=[(0, 2, 0)]
    )
    return results, analyse(results, draws=200), folder


def test_policy_names_exactly_the_script_and_style_of_the_page(tmp_path):
    _, page = page_of(small(tmp_path), tmp_path)
    policy = next(a["content"] for tag, a in page.elements if "http-equiv" in a)
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        [(_, _, text)] = [s for s in page.scripts if s[0] == tag and "type" not in s[1]]
        found = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{directive} 'sha256-{found}'" in policy
    assert "default-src 'none'" in policy
    for tag, attrs in page.elements:
        assert not attrs.get("href", "#").startswith(("http", "//", "javascript")), tag
        assert "src" not in attrs, tag
        assert not [name for name in attrs if name.startswith("on") or name == "style"], tag


def test_same_results_same_bytes(tmp_path):
    pages = []
    for name in ("one", "two"):
        results = small(tmp_path / name, prompts=6)
        paths = write_report(results, analyse(results, draws=200), tmp_path / name)
        pages.append([path.read_bytes() for path in paths])
    assert pages[0] == pages[1]


def test_links_lead_only_below_the_page(tmp_path):
    results = small(tmp_path / "run")
    odd = dataclasses.replace(results.samples[0], image="../../etc/passwd")
    results = dataclasses.replace(results, samples=(odd, *results.samples[1:]))
    _, page = page_of(results, tmp_path / "run")
    cells = [cell for row in page.block("data")["rows"] for cell in row["cells"]]
    assert [cell.get("href") for cell in cells].count(None) == 1
    assert all(not cell.get("href", "").startswith(("/", "..")) for cell in cells)
    assert page.block("pictures-0")[0] is None  # and what is no picture is not shown
    _, page = page_of(results, tmp_path / "elsewhere")
    assert not [
        cell for row in page.block("data")["rows"] for cell in row["cells"] if "href" in cell
    ]


def test_pictures_inside_are_limited_and_small(tmp_path):
    results = small(tmp_path, prompts=4, size=400)
    _, page = page_of(results, tmp_path, pictures=1)
    ids = [attrs["id"] for _, attrs, _ in page.scripts if attrs.get("id", "").startswith("pic")]
    assert ids == ["pictures-0"]
    url, shrunk = page.block("pictures-0")[0]
    assert shrunk
    assert max(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size) == 256
    with pytest.raises(InputError, match="number of prompts to show"):
        page_of(results, tmp_path, pictures=-1)


def test_thumbnail_says_nothing_of_how_the_picture_was_made(tmp_path):
    path = tmp_path / "made.png"
    path.write_bytes(png_bytes(Image.new("RGB", (32, 32), "red"), {"method": "w2sd-secret"}))
    data = base64.b64decode(thumbnail(path).url.partition(",")[2])
    assert b"secret" not in data
    assert Image.open(io.BytesIO(data)).getpixel((5, 5))[:3] == (255, 0, 0)


def test_damaged_pictures_and_endless_prompts_are_shown_for_what_they_are(tmp_path):
    prompts = [*made_prompts(2), PromptFacts("long", "x" * 1_000_000)]
    results = small(tmp_path, prompts=prompts)
    (tmp_path / results.samples[0].image).write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    text, page = page_of(results, tmp_path)
    assert len(text) < 300_000
    assert page.block("pictures-0")[0] is None
    assert page.block("pictures-0")[1] is not None
    assert "1,000,000 characters" in page.block("data")["rows"][2]["text"]


@pytest.mark.parametrize("prompts", [0, 1])
def test_next_to_nothing_makes_a_page(tmp_path, prompts):
    arms = [ArmFacts("only", "from elsewhere")]
    _, page = page_of(small(tmp_path, arms=arms, prompts=prompts), tmp_path)
    assert "Nothing was compared" in page.words
    assert len(page.block("data")["rows"]) == prompts


def test_unequal_cost_and_unequal_noise_are_said_in_words(tmp_path):
    results = small(tmp_path, prompts=6, compare=[("w2sd", "plain")])
    _, page = page_of(results, tmp_path)
    assert "80 against 40 evaluations a picture (×2): not a matched comparison" in page.words
    assert "start noise is not the same" not in page.words
    other = dataclasses.replace(results.samples[0], noise="0" * 64)
    _, page = page_of(dataclasses.replace(results, samples=(other, *results.samples[1:])), tmp_path)
    assert "In 1 of the rows the start noise is not the same for all arms" in page.words


def test_a_place_that_cannot_be_written_is_said_in_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    results = small(tmp_path)
    with pytest.raises(InputError, match="file"):
        write_report(results, analyse(results, draws=200), Path(tmp_path / "file"))

"""The pages in a real browser: Debian's chromium, without a window and without a network."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Iterator

import numpy as np
import pytest
from bench.made import ARMS, SCORERS, made_prompts, made_results
from PIL import Image

from w2sdiff.bench.report import fold_votes, read_votes, write_report, write_vote_page
from w2sdiff.bench.results import ArmFacts, PromptFacts
from w2sdiff.bench.stats.analyse import analyse

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    # A container has no user for the sandbox; the page is our own.
    *("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs a browser: apt-get install chromium"
)


@pytest.fixture(scope="module")
def chromium() -> Iterator:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Window:
    """A page and everything it complained about, asked for or tried to pop up."""

    def __init__(self, chromium, **options):
        self.context = chromium.new_context(
            **{"viewport": {"width": 1200, "height": 900}, **options}
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.complaints = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", self._asked)

    def _asked(self, request):
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.complaints.append(request.url)

    def open(self, path):
        self.page.goto(path.resolve().as_uri())
        return self.page


@pytest.fixture
def window(chromium) -> Iterator[Window]:
    window = Window(chromium)
    yield window
    assert window.complaints == []
    window.context.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    results = made_results(
        folder,
        prompts=12,
        gains={("w2sd", "hpsv2.1"): 0.3},
        missing=[(1, 3, 0)],
        failed=[(2, 5, 0)],
        size=64,
    )
    write_report(results, analyse(results, draws=200), folder)
    return results


def to_grid(page):
    """Scroll to the pictures: those that nobody comes near are not made."""
    page.locator("#grid .row").first.scroll_into_view_if_needed()
    page.wait_for_selector("#grid .row img")


def wait_until(page, condition):
    """Wait for an expression to be true.

    Not by `page.wait_for_function`: what it asks a second time the page has to `eval`, which its
    Content Security Policy forbids.
    """
    deadline = time.monotonic() + 30
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(20)


def rows_of(page):
    return [
        int(row)
        for row in page.eval_on_selector_all("#grid .row", "all => all.map(n => n.dataset.row)")
    ]


def ranked(results, arm, rival, scorer):
    """Rows with both scores, largest difference first."""
    values = results.values[scorer]
    gap = values[results.arm(arm), :, 0] - values[results.arm(rival), :, 0]
    return [int(n) for n in np.argsort(-gap) if np.isfinite(gap[n])], gap


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (360, "light")])
def test_report_opens_without_a_complaint_and_never_wider_than_the_window(
    chromium, run, width, scheme
):
    window = Window(chromium, viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = window.open(run.folder / "index.html")
    to_grid(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    red = int(background.partition("(")[2].partition(",")[0])
    assert (red < 128) == (scheme == "dark")
    window.context.close()
    assert window.complaints == []


def test_pictures_are_sorted_by_the_difference_of_a_pair_and_a_score(window, run):
    page = window.open(run.folder / "index.html")
    assert rows_of(page) == list(range(12))
    page.select_option("#pair", label="w2sd against w2sd = strength")
    page.select_option("#scorer", label="aesthetic")
    order, gap = ranked(run, "w2sd", "w2sd = strength", "aesthetic")
    page.select_option("#order", "wins")
    assert rows_of(page) == [*order, 3]  # a missing picture: last, whichever way round
    page.select_option("#order", "losses")
    assert rows_of(page) == [*reversed(order), 3]
    page.select_option("#order", "size")
    assert rows_of(page) == [*sorted(order, key=lambda n: -abs(gap[n])), 3]


def test_losses_are_shown_as_large_and_as_many_as_wins(window, run):
    page = window.open(run.folder / "index.html")
    page.select_option("#pair", label="w2sd against w2sd = steps")
    page.select_option("#scorer", label="aesthetic")
    order, gap = ranked(run, "w2sd", "w2sd = steps", "aesthetic")
    assert (gap[order[:4]] > 0).all()
    assert (gap[order[-4:]] < 0).all()
    wins, losses = (page.inner_text(side) for side in ("#wins", "#losses"))
    assert [run.prompts[n].text in wins for n in order[:4]] == [True] * 4
    assert [run.prompts[n].text in losses for n in order[-4:]] == [True] * 4
    assert page.locator("#wins img").count() == page.locator("#losses img").count() == 8
    boxes = [page.locator(side).first.bounding_box() for side in ("#wins img", "#losses img")]
    assert boxes[0]["width"] == boxes[1]["width"]
    assert boxes[0]["y"] == boxes[1]["y"]


def test_pictures_are_found_by_words_category_and_oddity(window, run):
    page = window.open(run.folder / "index.html")
    page.fill("#words", "NUMBER 1")
    assert rows_of(page) == [1, 10, 11]
    assert page.inner_text("#count") == "3 of 12 rows"
    page.select_option("#category", label="counting")
    assert rows_of(page) == [1, 10]
    page.fill("#words", "")
    page.select_option("#category", "")
    page.check("#odd")
    assert rows_of(page) == [3, 5]
    assert "failed: out of memory" in page.inner_text("#grid")


def stage(page):
    """The two pictures over one another, as they look: RGB [h, w, 3]."""
    wait_until(page, "['over', 'under'].every(id => document.getElementById(id).naturalWidth > 0)")
    shot = Image.open(io.BytesIO(page.locator("#stage").screenshot())).convert("RGB")
    return np.asarray(shot).astype(int)


def test_slider_shows_one_picture_left_of_the_edge_and_the_other_right_of_it(window, run):
    page = window.open(run.folder / "index.html")
    page.select_option("#pair", label="w2sd against w2sd = steps")
    to_grid(page)
    page.locator("#grid .row").first.locator("button").nth(1).click()
    pictures = [
        np.asarray(Image.open(run.folder / f"images/{arm}-0-0.png").resize((400, 400), 0)).astype(
            int
        )
        for arm in (1, 2)
    ]

    def seen():
        """Which picture is seen along the middle of the disc, left to right: 1, 2 or neither."""
        shot = stage(page)
        shot = np.asarray(Image.fromarray(shot.astype(np.uint8)).resize((400, 400), 0)).astype(int)
        disc = np.abs(pictures[0] - pictures[1]).sum(-1) > 30
        near = [np.abs(shot - picture).sum(-1) < 12 for picture in pictures]
        columns = [n for n in range(0, 400, 4) if disc[:, n].sum() > 40]
        return "".join(
            "1" if near[0][disc[:, n], n].mean() > 0.8
            else "2" if near[1][disc[:, n], n].mean() > 0.8
            else "?"
            for n in columns
        )  # fmt: skip

    page.focus("#cut")
    page.keyboard.press("Home")
    assert set(seen()) <= {"2", "?"}
    assert seen().count("2") > 10
    page.keyboard.press("End")
    assert seen().count("1") > 10
    assert "2" not in seen()
    box = page.locator("#stage").bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 60)
    page.mouse.up()
    assert page.input_value("#cut") == "50"
    for _ in range(10):
        page.keyboard.press("x")
    page.click("#swap")
    assert page.locator("#tag-a").inner_text() == "w2sd = steps"
    page.keyboard.press("n")
    assert page.inner_text("#slider-prompt") == run.prompts[1].text
    page.keyboard.press("p")
    page.keyboard.press("p")  # there is none before the first
    assert page.inner_text("#slider-prompt") == run.prompts[0].text
    page.keyboard.press("Escape")
    assert not page.locator("#slider").is_visible()


def test_slider_without_a_mouse(window, run):
    page = window.open(run.folder / "index.html")
    page.locator("#wins button").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#slider").is_visible()
    before = page.input_value("#cut")
    page.keyboard.press("ArrowLeft")
    assert int(page.input_value("#cut")) < int(before)
    assert page.evaluate("getComputedStyle(stage).getPropertyValue('--cut')") == "49%"


def test_large_pictures_are_loaded_whole_when_they_are_compared(window, tmp_path):
    results = made_results(tmp_path, prompts=1, size=300, scorers=SCORERS[:1])
    write_report(results, analyse(results, draws=50), tmp_path)
    page = window.open(tmp_path / "index.html")
    to_grid(page)
    page.locator("#grid button").first.click()
    wait_until(page, "over.naturalWidth === 300 && under.naturalWidth === 300")
    page.keyboard.press("Escape")
    assert page.evaluate("document.querySelector('#grid img').naturalWidth") == 256


def test_words_of_users_are_shown_and_never_run(window, tmp_path):
    evil = (
        "</script><script>document.title='owned'</script>"
        "<img src=x onerror=\"document.title='owned'\"> & {{ 7*7 }}"
    )
    arms = [ARMS[0], ArmFacts(evil, evil, 20, 3.0, 80)]
    prompts = [PromptFacts(f"{n}{evil}", f"{n} {evil}\u2028", f"{n % 2}{evil}") for n in range(4)]
    results = made_results(tmp_path, arms=arms, prompts=prompts, scorers=SCORERS[:1], title="T")
    write_report(results, analyse(results, draws=50), tmp_path)
    page = window.open(tmp_path / "index.html")
    to_grid(page)
    shown = page.inner_text("#grid")
    for row in prompts:
        assert row.text.strip() in shown
    page.locator("#grid button").first.click()
    assert evil in page.inner_text("#slider-prompt")
    assert evil in page.inner_text("#tag-b") + page.inner_text("#tag-a")
    assert page.title() == "T"


def test_policy_stops_a_script_that_slipped_through(chromium, run, tmp_path):
    text = (run.folder / "index.html").read_text("utf-8")
    (tmp_path / "index.html").write_text(
        text.replace("</main>", "<script>document.title='owned'</script></main>"), "utf-8"
    )
    window = Window(chromium)
    page = window.open(tmp_path / "index.html")
    assert page.title() == run.title
    assert "Content Security Policy" in " ".join(window.complaints)
    window.context.close()


def test_votes_are_cast_by_keys_saved_to_a_file_and_counted(window, tmp_path):
    results = made_results(tmp_path, prompts=6, scorers=SCORERS[:1], size=32)
    write_vote_page(results, "w2sd", "plain", tmp_path, count=4, seed=3)
    page = window.open(tmp_path / "vote.html")

    def shown():
        """The pictures are there: before, the page takes no vote."""
        wait_until(
            page,
            "document.getElementById('left').naturalWidth > 0 && "
            "['', 'visible'].includes(document.getElementById('left').style.visibility)",
        )

    def press(key, place):
        page.keyboard.press(key)
        wait_until(page, f"document.getElementById('place').textContent === {json.dumps(place)}")
        wait_until(
            page, "['', 'visible'].includes(document.getElementById('left').style.visibility)"
        )

    shown()
    press("1", "2 of 4")
    press("2", "3 of 4")
    press("z", "2 of 4")
    press("0", "3 of 4")
    page.reload()  # what was voted is kept
    assert page.inner_text("#place") == "3 of 4"
    shown()
    page.get_by_role("button", name="2 Right").click()
    wait_until(page, "document.getElementById('place').textContent === '4 of 4'")
    press("1", "4 of 4 done")
    press("2", "4 of 4 done")  # nothing is left to vote on
    with page.expect_download() as download:
        page.click("#save-end")
    name = download.value.suggested_filename
    (tmp_path / "votes").mkdir()
    download.value.save_as(tmp_path / "votes" / name)

    saved = json.loads((tmp_path / "votes" / name).read_text())
    choices = ["left", "tie", "right", "left"]
    assert [vote["choice"] for vote in saved["votes"]] == choices
    assert name == f"votes-{saved['voter']}.json"
    votes = read_votes(tmp_path)
    assert votes.refused == ()
    [poll] = json.loads((tmp_path / "vote-key.json").read_text())["polls"].values()
    expected = {
        pair["prompt"]: {"tie": 0.5, "left": pair["arm_left"], "right": not pair["arm_left"]}[said]
        for pair, said in zip(poll["pairs"], choices, strict=True)
    }
    assert {vote.prompt: vote.value for vote in votes.votes} == expected
    folded = fold_votes(results, votes)
    mean = analyse(folded, draws=50).cell("w2sd", "votes").mean
    assert mean == pytest.approx(sum(expected.values()) / 4)


def test_the_left_picture_of_the_vote_is_the_one_the_key_says(window, tmp_path):
    results = made_results(tmp_path, prompts=6, scorers=SCORERS[:1], size=32)
    write_vote_page(results, "w2sd", "plain", tmp_path, count=6)
    [poll] = json.loads((tmp_path / "vote-key.json").read_text())["polls"].values()
    page = window.open(tmp_path / "vote.html")
    for n, pair in enumerate(poll["pairs"]):
        wait_until(page, f"place.textContent.startsWith('{n + 1} of')")
        wait_until(page, "document.getElementById('left').style.visibility === ''")
        seen = page.evaluate(
            """() => ["left", "right"].map(id => {
              const canvas = document.createElement("canvas"), image = document.getElementById(id);
              canvas.width = canvas.height = 32;
              const pen = canvas.getContext("2d");
              pen.drawImage(image, 0, 0);
              return [...pen.getImageData(0, 0, 1, 1).data.slice(0, 3)];
            })"""
        )
        arms = ["w2sd", "plain"] if pair["arm_left"] else ["plain", "w2sd"]
        prompt = int(pair["prompt"])
        wanted = [
            list(
                Image.open(tmp_path / f"images/{results.arm(arm)}-{prompt}-0.png").getpixel((0, 0))
            )
            for arm in arms
        ]
        assert seen == wanted
        page.keyboard.press("1")
    assert {pair["arm_left"] for pair in poll["pairs"]} == {True, False}


@pytest.mark.slow
def test_a_thousand_prompts_of_six_arms_open_within_three_seconds(chromium, tmp_path):
    arms = [
        *ARMS,
        ArmFacts("w2sd = first order", "autoguidance", 20, 3.0, 80, "w2sd", "first order"),
        ArmFacts("w2sd = best", "best of 2", 20, 3.0, 80, "w2sd", "best of n"),
    ]
    results = made_results(tmp_path, arms=arms, prompts=made_prompts(1000), size=64)
    write_report(results, analyse(results, draws=200), tmp_path)
    window = Window(chromium)
    # Seconds that the page's own thread works: with nothing else to do, the time it takes to open.
    session = window.context.new_cdp_session(window.page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page = window.open(tmp_path / "index.html")
    wait_until(page, "document.documentElement.dataset.ready === '1'")
    metrics = {
        one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]
    }
    assert 0 < metrics["TaskDuration"] < 3
    assert page.locator("#grid .row").count() == 1000
    assert page.locator("img").count() < 200  # what is not near the window is not there yet
    to_grid(page)
    assert page.locator("img").count() < 200
    window.context.close()
    assert window.complaints == []

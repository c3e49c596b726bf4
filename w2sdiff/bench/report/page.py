"""`write_report`: a whole run on one page, and its drawings as PNG files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from w2sdiff.bench.analysis import Analysis
from w2sdiff.bench.report.counts import absences, provenance, remarks, uneven_noise
from w2sdiff.bench.report.gallery import grid_data, picture_blocks, shown
from w2sdiff.bench.report.html import render
from w2sdiff.bench.report.plots import draw_quality, draw_wins
from w2sdiff.bench.report.view import View
from w2sdiff.bench.results import Results
from w2sdiff.errors import InputError
from w2sdiff.jobs import write_whole

__all__ = ["write_report"]

OnProgress = Callable[[int, int], object]


def write_report(
    results: Results,
    analysis: Analysis,
    folder: Path,
    *,
    pictures: int | None = None,
    on_progress: OnProgress = lambda _done, _total: None,
) -> list[Path]:
    """Write `index.html` and `plots/*.png`: the verdict, and everything it rests on.

    The page is one file that fetches nothing. Small pictures lie in it as they are, large ones as
    thumbnails; pictures in or below `folder` are linked, too, so that a click shows them whole.
    The same results and analysis give the same bytes.

    Args:
        results: what was made and scored.
        analysis: what `analyse` says of it.
        folder: where to write; made if it is not there. Usually the run folder.
        pictures: prompts, from the first, whose pictures lie inside the page; those of the others
            are only linked. Default: as many as make 6,000 pictures. 0 for a page without any.
        on_progress: called with the number of pictures that are ready, and of all.

    Returns:
        The files, the page first.

    Raises:
        InputError: `pictures` is negative, or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> from w2sdiff.bench.results import ArmFacts
        >>> from w2sdiff.bench.stats.analyse import analyse
        >>> results = Results("Nothing yet", Path("."), (ArmFacts("plain", "plain"),), (), (), ())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in write_report(results, analyse(results), Path(folder))]
        ['index.html']
    """
    if pictures is not None and pictures < 0:
        raise InputError(f"expected the number of prompts to show, 0 or more, got {pictures}")
    total = shown(results, pictures) * results.replicates * len(results.arms)
    done = 0

    def on_done() -> None:
        nonlocal done
        done += 1
        on_progress(done, total)

    view = View(results, analysis)
    page = render(
        "page.html",
        ("base.css", "page.css"),
        ("page.js",),
        view=view,
        absences=absences(results),
        remarks=remarks(results),
        uneven_noise=uneven_noise(results),
        provenance=provenance(results, analysis),
        grid=grid_data(view, folder),
        blocks=picture_blocks(results, pictures, on_done),
    )
    plots = {"quality.png": draw_quality(view), "wins.png": draw_wins(view)}
    written = {folder / "index.html": page} | {
        folder / "plots" / name: data for name, data in plots.items() if data is not None
    }
    for path, data in written.items():
        _make_folder(path.parent)
        write_whole(path, data)
    return list(written)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from error

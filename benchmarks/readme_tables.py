"""Write the results tables of the README from `benchmarks/results/*.json`: nobody types them.

python benchmarks/readme_tables.py            # rewrites the section between the markers
python benchmarks/readme_tables.py --check    # exit code 1 if it is not up to date
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

REPO = Path(__file__).parent.parent
RESULTS = REPO / "benchmarks" / "results"
README = REPO / "README.md"
START, END = "<!-- results -->", "<!-- end of results -->"


def table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; every column after the first is right-aligned."""
    head = list(head)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def mixture(result: dict) -> str:
    steps = result["settings"]["steps"]
    arms = ["weak", "strong", "W2SD", "W2SD reversed", "AutoGuidance 1.5", "AutoGuidance 2"]
    rows = []
    for trial, data in result["trials"].items():
        for arm in arms:
            same_steps, same_cost = (
                data["arms"][arm][key] for key in ("equal_steps", "equal_evaluations")
            )
            rows.append(
                [
                    trial if arm == arms[0] else "",
                    arm,
                    f"{same_steps['total_variation']:.3f}",
                    same_steps["evaluations"],
                    f"{same_cost['total_variation']:.3f}",
                    same_cost["evaluations"],
                ]
            )
        rows.append(["", "*the truth itself, sampled*", f"{data['floor']:.3f}", "", "", ""])
    head = ["Mixture", "", f"{steps} steps", "evaluations", "equal cost", "evaluations"]
    return (
        "### Exact distributions\n\n"
        "Gaussian mixtures with a strong model that gets the weights of the modes wrong and a weak "
        "one that gets them wrong twice as far. Total variation of the mode masses from the truth, "
        f"{result['settings']['samples']} samples, lower is better; no network, no training.\n\n"
        + table(head, rows)
    )


def overhead(result: dict) -> str:
    w2sd, steps = result["cpu"]["w2sd"], result["settings"]["steps"]
    rows = [
        [name, row["measured"], row["target"], "yes" if row["met"] else "**no**"]
        for name, row in result["targets"].items()
    ]
    return (
        "### Overhead\n\n"
        "What the driver costs beside the network, on an SDXL UNet with fewer channels (and on the "
        "real one where there was a GPU).\n\n"
        + table(["", "measured", "at most", "met"], rows)
        + f"\n\nW2SD with a LoRA pair, {steps} steps: {w2sd['evaluations']} evaluations and "
        f"{w2sd['ratio_to_plain']:.2f} times plain sampling. Written by hand, with both branches "
        "everywhere and `set_adapters` before every leg: "
        f"{w2sd['evaluations_by_hand']} evaluations and {w2sd['three_legs_to_plain']:.2f} times."
    )


SECTIONS = {"mixture.json": mixture, "overhead.json": overhead}


def section() -> str:
    """Every table whose results are there, in the order above."""
    parts = [
        render(json.loads((RESULTS / name).read_text(encoding="utf-8")))
        for name, render in SECTIONS.items()
        if (RESULTS / name).is_file()
    ]
    return "\n\n".join(parts)


def filled(text: str) -> str:
    """The README's text with its results section rewritten."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{section()}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    check = parser.parse_args().check
    old = README.read_text(encoding="utf-8")
    new = filled(old)
    if check:
        sys.exit(old != new and "README.md is out of date: python benchmarks/readme_tables.py")
    README.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()

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


def percent(figures: dict) -> str:
    share, low, high = (100 * figures[name] for name in ("obeyed", "low", "high"))
    return f"{share:.0f}% ({low:.0f} to {high:.0f})"


def shapes_quality(result: dict) -> str:
    rows = []
    for model, found in result.items():
        best = str(found["best_guidance_scale"])
        for role in ("weak", "strong"):
            for scale in dict.fromkeys(("1.0", best)):
                figures = found["evaluation"][role][scale]
                rows.append([f"{model}, {role}", scale, *map(percent, figures.values())])
    parts = next(iter(result.values()))["evaluation"]["strong"]["1.0"]
    return (
        "### The embedded models\n\n"
        f"Captions obeyed, with 95% intervals, on {parts['all']['n']} captions; the better of the "
        "two guidance scales was chosen on other captions. *held out*: combinations that never "
        "occur in training.\n\n" + table(["", "guidance", *parts], rows)
    )


def told(difference: dict) -> str:
    low, high = (100 * end for end in difference["interval"])
    points = 100 * difference["difference"]
    return f"{points:+.1f} ({low:+.1f} to {high:+.1f}), {difference['verdict']}"


def shapes_methods(result: dict) -> str:
    limit = result["settings"]["limit"]
    parts = [
        "### Methods on the embedded models\n\n"
        f"Captions obeyed on {limit} captions, from the same start noise; *g* is plain sampling's "
        "best guidance scale, chosen on other captions. Differences in points with paired 95% "
        "intervals, from plain sampling at equal evaluations and from the rival of equal "
        "first-order strength, which follows in brackets."
    ]
    for model, found in result["models"].items():
        rows = []
        for name, arm in found["arms"].items():
            cost, rival = arm.get("minus_reference"), arm.get("minus_rival")
            rows.append(
                [
                    name,
                    arm["evaluations"],
                    f"{100 * arm['score']['share']:.1f}%",
                    told(cost) if cost else "",
                    f"{told(rival)} [{rival['rival']}]" if rival else "",
                ]
            )
        head = [f"{model}, g = {found['guidance']['g']:g}", "evaluations", "obeyed"]
        parts.append(table([*head, "against equal cost", "against equal strength"], rows))
    return "\n\n".join(parts)


def shapes_balance(result: dict) -> str:
    rows = []
    for name, arm in result["arms"].items():
        figures, minus = arm["equal_evaluations"], arm["minus"]["equal_evaluations"]
        low, high = figures["interval"]
        rival = minus.get("AutoGuidance 2", {}).get("verdict", "")
        rows.append(
            [
                name,
                figures["evaluations"],
                f"{figures['total_variation']:.3f} ({low:.3f} to {high:.3f})",
                minus.get("strong", {}).get("verdict", ""),
                rival,
            ]
        )
    floor = result["floor"]["total_variation"]
    rows.append(["*the truth itself, sampled*", "", f"{floor:.3f}", "", ""])
    head = ["", "evaluations", "total variation", "against strong", "against AutoGuidance 2"]
    return (
        "### A pair with a known bias\n\n"
        'Colours of open captions ("a circle") for two LoRAs trained on worlds in which three of '
        "six colours are rare (strong) and rarer still (weak). Total variation of the colour "
        f"frequencies from the truth, {result['settings']['n']} pictures an arm, equal "
        "evaluations, 95% intervals; lower is better.\n\n" + table(head, rows)
    )


def shapes_quick(result: dict) -> str:
    cells = {cell["arm"]: cell for cell in result["cells"] if cell["scorer"] == "shapes"}
    against = {
        c["rival"]: c
        for c in result["comparisons"]
        if c["scorer"] == "shapes" and c["rival"].startswith(f"{c['arm']}: ")
    }
    rows = []
    for arm in result["arms"]:
        cell = cells[arm["name"]]
        low, high = (100 * end for end in cell["interval"])
        row = [arm["name"], arm["evaluations"], f"{arm['strength']:.2f}" if arm["strength"] else ""]
        row.append(f"{100 * cell['mean']:.0f}% ({low:.0f} to {high:.0f})")
        if c := against.get(arm["name"]):
            low, high = (100 * end for end in c["difference"]["interval"])
            points = 100 * c["difference"]["mean"]
            row.append(f"{points:+.0f} ({low:+.0f} to {high:+.0f}), {c['outcome']}")
        rows.append([*row, ""][:5])
    head = ["", "evaluations", "effective guidance", "obeyed", "the method against it"]
    return (
        "### Matched rivals, made by `w2sdiff bench`\n\n"
        f"`benchmarks/experiments/shapes_quick.yaml`: {result['prompts']['count']} captions on "
        "shapes-unet, every method against rivals of equal evaluations. Differences in points, "
        "paired 95% intervals; the outcome is corrected over all comparisons of the run.\n\n"
        + table(head, rows)
    )


def shapes_pairs(result: dict) -> str:
    counts = {found["captions"] for found in result["models"].values()}
    parts = [
        "### Every kind of pair on the embedded models\n\n"
        f"`benchmarks/experiments/shapes_pairs_*.yaml`, {' and '.join(map(str, counts))} captions: "
        "percent obeyed in all and by category, then each pair against plain sampling at its best "
        "guidance scale with the same steps, with as many evaluations, and against what it is to "
        "first order. Points with paired 95% intervals; the outcome is corrected over all "
        "comparisons of a model."
    ]
    for model, found in result["models"].items():
        first = next(iter(found["arms"]))
        names = [name for name, arm in found["arms"].items() if arm["rival_of"] is None]
        rows = [_pair_row(name, first, found["arms"]) for name in names]
        head = [f"{model}, {found['steps']} steps, guidance {found['guidance']:g}"]
        head += ["evaluations", "all", *found["arms"][first]["parts"]]
        parts.append(table([*head, "same steps", "equal evaluations", "first order"], rows))
    return "\n\n".join(parts)


def _pair_row(name: str, plain: str, arms: dict) -> list[object]:
    arm = arms[name]
    against = {arms[rival]["match"]: told_outcome(d) for rival, d in arm.get("minus", {}).items()}
    same_steps = arm.get("minus", {}).get(plain)
    shares = [f"{100 * part['share']:.0f}" for part in (arm["score"], *arm["parts"].values())]
    told = ["" if same_steps is None else told_outcome(same_steps)]
    told += [against.get(match, "") for match in ("evaluations", "first order")]
    return [name, arm["evaluations"], *shares, *told]


def told_outcome(difference: dict) -> str:
    low, high = (100 * end for end in difference["interval"])
    points = 100 * difference["difference"]
    return f"{points:+.1f} ({low:+.1f} to {high:+.1f}), {difference['outcome']}"


def shapes_clip(result: dict) -> str:
    rows = [
        [name, *(share(result["true_above_altered"][part][name]) for part in ("seen", "held out"))]
        for name in result["true_above_altered"]["seen"]
    ]
    overall = result["agreement_with_oracle"]["all"]
    return (
        "### The judge that needs no download\n\n"
        "`clipscore:model=shapes-clip`: how often the true caption scores above the same caption "
        "with one thing altered, on fresh renders. On pictures of shapes-unet its score tells "
        f"obeyed from not with an area under the ROC curve of {overall['auc']:.3f} "
        f"({overall['low']:.3f} to {overall['high']:.3f}).\n\n"
        + table(["altered", "seen combinations", "held out"], rows)
    )


def core2(result: dict) -> str:
    limit, steps = result["settings"]["limit"], result["settings"]["steps"]
    parts = [
        "### CoRe² on the embedded models\n\n"
        f"Captions obeyed on {limit} captions, {steps} steps unless the name says otherwise, from "
        "the same start noise; the best guidance scale of plain sampling was chosen on other "
        "captions. *gap closed*: between plain at guidance 1 and plain at its best scale. "
        "Differences in points, paired 95% intervals."
    ]
    for model, found in result["models"].items():
        parts += [_core2_table(model, found), _core2_facts(model, found)]
    return "\n\n".join(parts)


def core2_pair(result: dict) -> str:
    parts = [
        "### A distilled W2SD pair\n\n"
        "The same for a noise model that has learned what W2SD with the early checkpoint makes of "
        "a step (`core2 collect --method w2sd`)."
    ]
    for model, found in result["models"].items():
        parts.append(_core2_table(model, found))
    return "\n\n".join(parts)


def _core2_table(model: str, found: dict) -> str:
    rows = []
    for name, arm in found["arms"].items():
        low, high = (100 * end for end in arm["score"]["interval"])
        obeyed = f"{100 * arm['score']['share']:.1f}% ({low:.0f} to {high:.0f})"
        low, high = (100 * end for end in arm["gap_closed"]["interval"])
        anchor = name in ("plain, guidance 1", "plain, best guidance")
        closed = f"{100 * arm['gap_closed']['share']:.0f}% ({low:.0f} to {high:.0f})"
        rows.append(
            [
                name,
                arm["evaluations"],
                obeyed,
                f"{100 * arm['parts']['held out']['share']:.0f}%",
                "" if anchor else closed,
                "" if name == "plain, best guidance" else told(arm["minus_best"]),
            ]
        )
    guidance = found["guidance"]
    head = [f"{model}, best guidance {guidance['best']:g}, learned {guidance['learned']:g}"]
    head += ["evaluations", "obeyed", "held out", "gap closed", "against plain, best guidance"]
    return table(head, rows)


def _core2_facts(model: str, found: dict) -> str:
    explained, timing = found["explained"], found["timing"]
    levels = explained["by_level"]
    kinds = ", ".join(f"{name} {100 * s:.0f}%" for name, s in explained["by_category"].items())
    seconds = "; ".join(
        f"{name}: {times['fast over plain at its best']:.2f} of plain at its best scale, of which "
        f"the noise model is {100 * times['noise model, share of fast']:.0f}%"
        for name, times in timing.items()
    )
    return (
        f"{model}: of what guidance adds, the noise model predicts {100 * levels[0]:.0f}% at the "
        f"first step, {100 * levels[len(levels) // 2]:.0f}% in the middle and "
        f"{100 * levels[-1]:.0f}% at the last one (squared; {kinds}). Seconds of fast sampling, "
        f"{seconds}."
    )


def obeyed(figures: dict) -> str:
    low, high = (100 * end for end in figures["interval"])
    return f"{100 * figures['share']:.1f}% ({low:.0f} to {high:.0f})"


def shapes_highres(result: dict) -> str:
    settings, rows = result["settings"], []
    for name, arm in result["arms"].items():
        error = arm.get("error_minus_rival")
        low, high = error["interval"] if error else (0, 0)
        against = f"{error['difference']:+.4f} ({low:+.4f} to {high:+.4f})" if error else ""
        drawn = "score" in arm
        parts = [f"{100 * arm['parts'][part]['share']:.0f}%" if drawn else "" for part in PARTS]
        rows.append(
            [
                name,
                f"{arm['error']['mean']:.4f}",
                f"{against}, {error['verdict']} [{arm['rival']}]" if error else "",
                obeyed(arm["score"]) if drawn else "",
                *parts,
                obeyed(arm["colours_right"]) if drawn else "",
            ]
        )
    head = ["", "error", "against [rival]", "obeyed", *PARTS, "right colours"]
    limit, ceiling = settings["limit"], result["ceiling"]["through the VAE"]["share"]
    return (
        "### High resolution, and compression\n\n"
        "`shapes-dit` at 128 × 128 pixels, four times the tokens it was trained for, and then with "
        "keys and values compressed (R = 2 in the second half of the layers, unless said "
        "otherwise); steps are those of its adaptation, compressed networks start from the one "
        f"tuned for 2,000. *error*: of the predicted v, on {settings['pictures']} pictures that "
        f"nothing was trained on; paired 95% intervals. *obeyed*: of {limit['128']} captions "
        f"({limit['64']} at 64 pixels), {settings['steps']} steps, guidance "
        f"{settings['guidance_scale']:g}; true pictures that go through the VAE at this size reach "
        f"{100 * ceiling:.0f}%. *right colours*: as many objects as demanded, in their colours, "
        "whatever their shape and place.\n\n"
        + table(head, rows)
        + "\n\nOne evaluation, by tokens: milliseconds of the processor (one thread) per item, and "
        "as a share of none; and the most memory that the allocator held beyond the weights and "
        "the inputs, eight items at once.\n\n" + _timing(result["timing"])
    )


def _timing(timing: dict) -> str:
    names = next(iter(timing.values()))
    rows = [
        [
            name,
            *(
                f"{own['ms']:.1f} ({own['over_none']:.2f}), {own['peak_mb']:.1f} MB"
                for own in (found[name] for found in timing.values())
            ),
        ]
        for name in names
    ]
    return table(["", *timing], rows)


PARTS = ("single", "counting", "colours", "position")


def compressed_weak(result: dict) -> str:
    parts = [
        "### The compressed network as the weak model\n\n"
        "*best a*: how far to extrapolate, s + a (s − w), for the least squared error of the "
        "prediction, with 95% intervals, over all noise levels; above zero, the weak model errs "
        "where the strong one does, only more so. AutoGuidance's scale is 1 + a, W2SD is a = 1 to "
        "first order."
    ]
    for size, found in result["sizes"].items():
        strong = found["directions"]["no caption"]["strong_error"]
        rows = [["none: the strong one", f"{strong:.4f}", "", ""]]
        for name, row in found["directions"].items():
            low, high = row["best_a"]["interval"]
            levels = row["best_a_by_time"]
            rows.append(
                [
                    name,
                    f"{row['error']:.4f}",
                    f"{row['best_a']['a']:+.3f} ({low:+.3f} to {high:+.3f})",
                    " ".join(f"{a:+.2f}" for a in levels[::3]),
                ]
            )
        head = [f"weak model, {size} pixels", "error", "best a", "at noise levels, low to high"]
        parts.append(table(head, rows))
        if not found["arms"]:
            continue
        rows = [
            [
                name,
                arm["evaluations"],
                obeyed(arm["score"]),
                told(arm["minus_reference"]) if "minus_reference" in arm else "",
                obeyed(arm["colours_right"]),
                told(arm["colours_minus_reference"]) if "colours_minus_reference" in arm else "",
                f"{told(rival)} [{rival['rival']}]" if (rival := arm.get("minus_rival")) else "",
            ]
            for name, arm in found["arms"].items()
        ]
        head = [f"{size} pixels, {found['limit']} captions, g = {found['guidance_scale']:g}"]
        head += [
            "evaluations",
            "obeyed",
            "against equal cost",
            "right colours",
            "against equal cost",
            "obeyed, against equal strength",
        ]
        parts.append(table(head, rows))
    return "\n\n".join(parts)


def share(figures: dict) -> str:
    value, low, high = (100 * figures[name] for name in ("share", "low", "high"))
    return f"{value:.1f}% ({low:.1f} to {high:.1f})"


SECTIONS = {
    "shapes_quality.json": shapes_quality,
    "shapes_methods.json": shapes_methods,
    "core2.json": core2,
    "core2_pair.json": core2_pair,
    "shapes_highres.json": shapes_highres,
    "compressed_weak.json": compressed_weak,
    "shapes_quick/summary.json": shapes_quick,
    "shapes_pairs.json": shapes_pairs,
    "shapes_balance.json": shapes_balance,
    "shapes_clip.json": shapes_clip,
    "mixture.json": mixture,
    "overhead.json": overhead,
}


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

"""The README and its neighbours tell the truth: blocks run, costs hold, links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

import w2sdiff

REPO = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "pipelines/README.md"]
DOWNLOAD = "# needs a download"  # first line of a block that is compiled but cannot run offline


def python_blocks(page: str) -> list[str]:
    text = (REPO / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def test_readme_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    ran = 0
    for number, block in enumerate(python_blocks("README.md")):
        code = compile(block, f"README.md block {number}", "exec", dont_inherit=True)
        if not block.startswith(DOWNLOAD):
            exec(code, names)
            ran += 1
    assert ran >= 3
    assert (tmp_path / "red_circle.png").is_file()


@pytest.mark.parametrize("page", PAGES)
def test_blocks_compile(page: str) -> None:
    for number, block in enumerate(python_blocks(page)):
        compile(block, f"{page} block {number}", "exec")


def costs() -> list[tuple[str, int]]:
    text = (REPO / "README.md").read_text(encoding="utf-8")
    table = text.partition("<!-- costs")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(.+)` \| (\d+) \|$", table, flags=re.MULTILINE)
    return [(expression.replace(r"\|", "|"), int(cost)) for expression, cost in rows]


@pytest.mark.parametrize(("expression", "cost"), costs())
def test_printed_costs_are_what_methods_say(
    expression: str, cost: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weak").mkdir()
    save_file({}, tmp_path / "weak" / "diffusion_pytorch_model.safetensors")
    save_file({}, tmp_path / "noise_model.safetensors")
    monkeypatch.chdir(tmp_path)
    method = eval(expression, {name: getattr(w2sdiff, name) for name in w2sdiff.__all__})
    assert method.cost(num_inference_steps=50, guidance_scale=5.5) == cost


def test_every_public_method_and_edit_is_in_the_readme() -> None:
    from w2sdiff.edits import EDITS
    from w2sdiff.methods import METHODS

    text = (REPO / "README.md").read_text(encoding="utf-8")
    assert len(costs()) >= len(METHODS)
    for kind in [*METHODS.values(), *EDITS.values()]:
        assert f"{kind.__name__}(" in text


def test_every_scorer_is_in_the_readme() -> None:
    from w2sdiff.scorers import SCORERS

    text = (REPO / "README.md").read_text(encoding="utf-8")
    assert not [kind for kind in SCORERS if f"`{kind}`" not in text]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (REPO / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    files = [link for link in links if not link.startswith(("http", "#"))]
    missing = [link for link in files if not (REPO / page).parent.joinpath(link).exists()]
    assert not missing
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    anchors = {"#" + heading.lower().replace(" ", "-") for heading in headings}
    assert {link for link in links if link.startswith("#")} <= anchors


def test_contributing_example_method_works() -> None:
    """The method that CONTRIBUTING adds registers, has a cost and a JSON form."""
    from w2sdiff.methods import METHODS, from_json

    (block,) = python_blocks("CONTRIBUTING.md")
    names: dict[str, object] = {"__name__": "halfway"}
    try:
        exec(compile(block, "CONTRIBUTING.md", "exec", dont_inherit=True), names)
        method = METHODS["halfway"](weak=w2sdiff.Guidance(1.0))
        assert method.cost(num_inference_steps=10, guidance_scale=5.0) == 30
        assert from_json(method.to_json()) == method
        assert METHODS.summary("halfway").startswith("Step with the mean")
    finally:
        METHODS._classes.pop("halfway", None)


def test_results_tables_are_those_of_the_result_files() -> None:
    script = REPO / "benchmarks" / "readme_tables.py"
    checked = subprocess.run(
        [sys.executable, script, "--check"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_commands_use_options_that_exist() -> None:
    """Every `w2sdiff COMMAND --option` of the pages and the Makefile is one that it knows."""
    import typer.main

    from w2sdiff.cli.app import app

    commands = dict(typer.main.get_command(app).commands)
    for name, group in list(commands.items()):
        inner = getattr(group, "commands", {})
        commands |= {f"{name} {word}": command for word, command in inner.items()}
    known = {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in commands.items()
        if not hasattr(command, "commands")
    }
    used = set()
    for page in ["README.md", "Makefile", "benchmarks/README.md"]:
        text = (REPO / page).read_text(encoding="utf-8").replace("\\\n", " ")
        for first, second, rest in re.findall(r"w2sdiff ([a-z0-9]+) ([a-z]*)([^`\n]*)", text):
            group = f"{first} {second}" in known
            command, options = (f"{first} {second}", rest) if group else (first, second + rest)
            if command in known:
                used |= {(command, option) for option in re.findall(r"--[a-z-]+", options)}
    assert {"generate", "score", "report", "core2 collect"} <= {command for command, _ in used}
    assert not [(command, option) for command, option in used if option not in known[command]]

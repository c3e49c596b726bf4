"""Imports run downhill, heavy ones wait until they are needed, and `__all__` tells the truth."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import w2sdiff

PACKAGE = Path(w2sdiff.__file__).parent
REPO = PACKAGE.parent
OUTSIDE = {"pipelines", "benchmarks", "notebooks", "tests"}

# Who lives where, from the ground up. A file may import its own unit and the units of lower floors.
FLOORS = [
    {"errors"},
    {"registry", "pickles", "curves", "accelerator", "average"},
    {"forms"},
    {"levels", "attention", "jobs"},
    {"noise_model"},
    {"imaging", "shapes", "mixture"},
    {"edits", "prompts", "scorers"},
    {"methods"},
    {"drivers"},
    {"custom", "generate"},
    {"core2"},
    {"bench", "highres", "testing"},
    {"cli"},
    {"__main__"},
]
SAME_UNIT = {"schedulers": "levels"}  # one subject in two files: the schedulers' side of `Levels`
# The noise model lies under edits and methods, which wear it; collecting and training it do not.
NOISE_MODEL = {
    f"w2sdiff.core2.{name}"
    for name in (
        *("noise_model", "compact", "published", "published_config", "bank", "prompt_svd"),
        *("weights", "last_prompt"),
    )
}
DOORS = {"w2sdiff.attention.train"}  # python -m ...: a file that opens the command line
FLOOR = {unit: number for number, units in enumerate(FLOORS) for unit in units}

# Absent until something needs them: what `import w2sdiff` and `w2sdiff --help` may cost.
HEAVY = {"torch", "numpy", "diffusers", "transformers", "peft", "accelerate", "matplotlib", "scipy"}
# Absent from the top of every file: each takes seconds to import.
LAZY = {
    *("diffusers", "transformers", "peft", "accelerate", "open_clip", "matplotlib", "torchvision"),
    *("ray", "jinja2", "yaml", "huggingface_hub"),
}


def dotted(path: Path) -> str:
    parts = path.relative_to(REPO).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {dotted(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def parse(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def imported(nodes: list[ast.AST]) -> Iterator[str]:
    """Dotted names that these nodes import; for `from a import b`, `a.b` if that is a module."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"relative import: {ast.unparse(node)}"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in FILES else str(node.module)


def on_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: no function bodies, nothing for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from on_import(node)


def unit(module: str) -> str:
    if module in NOISE_MODEL:
        return "noise_model"
    if module in DOORS:
        return "__main__"
    name = module.split(".")[1]
    return SAME_UNIT.get(name, name)


@pytest.mark.parametrize("module", [name for name in FILES if "." in name])
def test_imports_run_downhill(module: str) -> None:
    assert unit(module) in FLOOR, f"{unit(module)} has no floor yet: give it one in FLOORS"
    for name in imported(list(ast.walk(parse(module)))):
        if name.split(".")[0] in OUTSIDE:
            pytest.fail(f"{module} imports {name}, which is not part of the package")
        if name == "w2sdiff" or not name.startswith("w2sdiff."):
            continue  # the version, or somebody else's
        own, other = FLOOR[unit(module)], FLOOR[unit(name)]
        assert unit(name) == unit(module) or other < own, f"{module} imports {name}, uphill"


def test_no_module_imports_itself_round_a_corner() -> None:
    graph = {
        module: {name for name in imported(list(on_import(parse(module)))) if name in FILES}
        for module in FILES
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, naming the cycle


@pytest.mark.parametrize("module", FILES)
def test_slow_libraries_are_imported_inside_functions(module: str) -> None:
    tops = {name.split(".")[0] for name in imported(list(on_import(parse(module))))}
    assert not tops & LAZY


@pytest.mark.parametrize("folder", sorted(OUTSIDE))
def test_folders_beside_the_package_do_not_import_each_other(folder: str) -> None:
    for path in (REPO / folder).rglob("*.py"):
        names = imported(list(ast.walk(ast.parse(path.read_text(encoding="utf-8")))))
        assert not {name.split(".")[0] for name in names} & (OUTSIDE - {folder}), path


def modules_after(code: str) -> set[str]:
    """Top-level names in `sys.modules` of a fresh interpreter that has run `code`."""
    report = "\nprint('|' + ' '.join({name.split('.')[0] for name in sys.modules}))"
    ran = subprocess.run(
        [sys.executable, "-c", "import sys\n" + code + report],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.rpartition("|")[2].split())


def test_import_costs_next_to_nothing() -> None:
    assert not modules_after("import w2sdiff") & HEAVY


def test_a_value_costs_no_more_than_torch() -> None:
    loaded = modules_after("import w2sdiff\nw2sdiff.W2SD(weak=w2sdiff.Guidance(1.0))")
    assert not loaded & LAZY


@pytest.mark.parametrize("command", ["--help", "generate --help", "list methods", "list edits"])
def test_command_line_answers_without_the_heavy_libraries(command: str) -> None:
    loaded = modules_after(
        f"sys.argv = ['w2sdiff', *{command.split()!r}]\n"
        "from w2sdiff.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code"
    )
    heavy = HEAVY if command.endswith("--help") else LAZY  # a list imports what it lists
    assert "w2sdiff" in loaded
    assert not loaded & heavy


def test_public_names_are_the_ones_type_checkers_see() -> None:
    typed = [
        alias.name
        for block in parse("w2sdiff").body
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert sorted(typed) == sorted(w2sdiff.__all__)
    assert set(w2sdiff.__all__) <= set(dir(w2sdiff))


@pytest.mark.parametrize("module", FILES)
def test_all_names_what_is_there(module: str) -> None:
    if module.endswith("__main__"):
        pytest.skip("a script, not for import")
    loaded = importlib.import_module(module)
    names = getattr(loaded, "__all__", [])
    assert len(names) == len(set(names))
    assert not [name for name in names if not hasattr(loaded, name)]


def test_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'W2DS'"):
        _ = w2sdiff.W2DS

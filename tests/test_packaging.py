"""What `pip install` puts on a machine: the package with its embedded weights, and nothing else."""

from __future__ import annotations

import email
import email.message
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points
from pathlib import Path, PurePosixPath

import pytest

import w2sdiff


def tracked(repo: Path, folder: str) -> list[str]:
    """Paths below `folder` that a clone holds, or, outside a git checkout, that lie there."""
    asked = subprocess.run(
        ["git", "ls-files", "-z", folder], cwd=repo, capture_output=True, text=True, check=False
    )
    if asked.returncode == 0 and asked.stdout:
        return [path for path in asked.stdout.split("\0") if path]
    return [path.relative_to(repo).as_posix() for path in (repo / folder).rglob("*.*")]


@pytest.fixture(scope="module")
def wheel(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of what git tracks, built without network and without touching the checkout."""
    source = tmp_path_factory.mktemp("source")
    files = ["setup.cfg", "pyproject.toml", "README.md", "LICENSE"]
    for folder in ["w2sdiff", "tests", "pipelines", "benchmarks"]:
        files += tracked(repo, folder)
    for path in files:
        if (repo / path).is_file():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(repo / path, source / path)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation"]
    built = subprocess.run(
        [*pip, "--wheel-dir", "dist", "."], cwd=source, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = (source / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


def metadata(wheel: zipfile.ZipFile) -> email.message.Message:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return email.message_from_bytes(wheel.read(name))


def test_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {PurePosixPath(name).parts[0] for name in wheel.namelist()}
    assert tops == {"w2sdiff", f"w2sdiff-{w2sdiff.__version__}.dist-info"}


def test_wheel_holds_every_file_of_the_package(wheel: zipfile.ZipFile, repo: Path) -> None:
    missing = set(tracked(repo, "w2sdiff")) - set(wheel.namelist())
    assert not {path for path in missing if (repo / path).is_file()}


def test_embedded_weights_are_in_the_wheel_and_small(wheel: zipfile.ZipFile) -> None:
    weights = [i for i in wheel.infolist() if i.filename.endswith(".safetensors")]
    models = {PurePosixPath(i.filename).parts[3] for i in weights}
    assert {"shapes-unet", "shapes-dit"} <= models
    # 20 of models, 3 of the judge, 6 of noise models
    assert sum(i.file_size for i in weights) <= 29 * 2**20


def test_wheel_needs_no_file_outside_it(wheel: zipfile.ZipFile) -> None:
    assert "w2sdiff/py.typed" in wheel.namelist()
    assert not [
        name for name in wheel.namelist() if name.endswith((".bin", ".pt", ".pkl", ".ckpt"))
    ]


def test_dependencies_are_ranges(wheel: zipfile.ZipFile) -> None:
    needs = metadata(wheel).get_all("Requires-Dist") or []
    assert not [need for need in needs if "==" in need.replace("extra ==", "")]
    assert all(">=" in need for need in needs if not need.startswith("w2sdiff[")), needs


def test_oldest_diffusers_is_four_minor_versions_back_and_is_what_make_oldest_runs(
    wheel: zipfile.ZipFile, repo: Path
) -> None:
    (need,) = [n for n in metadata(wheel).get_all("Requires-Dist") or [] if n[:9] == "diffusers"]
    oldest = int(re.search(r">=0\.(\d+)", need)[1])
    newest = int(re.search(r"<0\.(\d+)", need)[1]) - 1
    assert newest - oldest >= 4
    assert f"diffusers==0.{oldest}.*" in (repo / "Makefile").read_text()


def test_entry_point_is_the_command_line() -> None:
    (script,) = entry_points(group="console_scripts", name="w2sdiff")
    assert script.value == "w2sdiff.cli:main"
    assert callable(script.load())


def test_pyproject_holds_only_the_build_system(repo: Path) -> None:
    assert list(tomllib.loads((repo / "pyproject.toml").read_text())) == ["build-system"]


def test_tests_are_no_package(repo: Path) -> None:
    for folder in ["tests", "pipelines", "benchmarks"]:
        assert not list((repo / folder).rglob("__init__.py"))

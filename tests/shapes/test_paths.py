from __future__ import annotations

import subprocess
import sys

import pytest

from w2sdiff import shapes
from w2sdiff.errors import InputError


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A shelf with two checkpoints, one of them with a weak denoiser and a LoRA."""
    for name in ("shapes-unet", "shapes-dit"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text("{}")
    (tmp_path / "shapes-unet" / "unet_weak").mkdir()
    (tmp_path / "shapes-unet" / "loras").mkdir()
    (tmp_path / "shapes-unet" / "loras" / "small.safetensors").touch()
    monkeypatch.setattr(shapes, "_CHECKPOINTS", tmp_path)
    return tmp_path


def test_paths_of_what_is_there(shelf):
    assert shapes.checkpoint_names() == ["shapes-dit", "shapes-unet"]
    assert shapes.checkpoint_path() == shelf / "shapes-unet"
    assert shapes.weak_path() == shelf / "shapes-unet" / "unet_weak"
    assert shapes.lora_path("shapes-unet", "small").name == "small.safetensors"


def test_a_wrong_name_is_refused_with_the_nearest(shelf):
    with pytest.raises(InputError, match="shapes-unet"):
        shapes.checkpoint_path("shape-unet")
    with pytest.raises(InputError, match="small"):
        shapes.lora_path("shapes-unet", "smal")
    with pytest.raises(InputError, match="without a weak denoiser"):
        shapes.weak_path("shapes-dit")


def test_importing_the_package_imports_no_torch_and_the_world_no_scipy():
    code = (
        "import sys, w2sdiff.shapes.world; "
        "print([m for m in ('torch', 'diffusers', 'scipy') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_names_of_the_package_are_found_and_others_are_not():
    for name in shapes.__all__:
        assert getattr(shapes, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = shapes.nothing

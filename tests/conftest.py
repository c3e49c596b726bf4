"""What every test needs: no network, one thread, and the folders that are not part of a clone."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Before anything imports torch or the hub client: they read these once. One thread, because the
# networks here are tiny and because sums then have one order. The modules folder is where diffusers
# copies the files of `custom_pipeline=`.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="w2sdiff-modules-")
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
from hypothesis import settings

# A first example that imports torch, or a busy machine, is not a failure.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

REPO = Path(__file__).parent.parent
SHARED = REPO.parent / "shared"


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the repository."""
    return REPO


@pytest.fixture(scope="session")
def golden() -> Path:
    """Tensors recorded from the published code; they lie beside the repository, not in it."""
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip(f"no golden tensors at {folder}; a clone does not hold them")
    return folder


@pytest.fixture(autouse=True)
def _the_backend_of_the_process() -> Iterator[None]:
    """`set_attention_backend` of one model is, in diffusers, also that of every model to come."""
    yield
    if dispatch := sys.modules.get("diffusers.models.attention_dispatch"):
        usual = dispatch.AttentionBackendName(dispatch.DIFFUSERS_ATTN_BACKEND)
        dispatch._AttentionBackendRegistry.set_active_backend(usual)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs CUDA")

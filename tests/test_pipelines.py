"""The files in `pipelines/`, loaded as a user loads them: `custom_pipeline=` on a saved model."""

from __future__ import annotations

import inspect
from pathlib import Path

import diffusers
import pytest
import tiny
import torch
from diffusers import DiffusionPipeline

from w2sdiff import W2SD, Guidance, Plain, attach

PIPELINES = Path(__file__).parent.parent / "pipelines"
FILES = {
    "sd": "w2s_sd.py",
    "sdxl": "w2s_sdxl.py",
    "sd3": "w2s_sd3.py",
    "flux-true-cfg": "w2s_flux.py",
    "pixart": "w2s_pixart_sigma.py",
}
STEPS = 3
PAIR = W2SD(strong=Guidance(1.0), weak=Guidance(0.0))


def load(folder: Path, family: str) -> DiffusionPipeline:
    pipe = DiffusionPipeline.from_pretrained(
        folder, custom_pipeline=str(PIPELINES / FILES[family]), trust_remote_code=True
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module", params=FILES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(family)
    tiny.build(family).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def stock(folder: Path) -> DiffusionPipeline:
    # Loaded as the other one is: weights read from a file lie at other addresses than fresh ones,
    # and on some processors MKL adds up in another order for that.
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe(folder: Path, family: str) -> DiffusionPipeline:
    return load(folder, family)


def latents(pipe: DiffusionPipeline, family: str, **changes: object) -> torch.Tensor:
    return pipe(**tiny.call_kwargs(family, steps=STEPS, **changes)).images


def test_every_file_is_tested() -> None:
    assert sorted(FILES.values()) == sorted(path.name for path in PIPELINES.glob("*.py"))


def test_without_a_method_it_is_the_stock_pipeline(pipe, stock, family) -> None:
    assert torch.equal(latents(pipe, family), latents(stock, family))
    assert pipe.run_stats is None


def test_plain_goes_through_the_driver_and_changes_no_bit(pipe, stock, family) -> None:
    assert torch.equal(latents(pipe, family, method=Plain()), latents(stock, family))
    assert pipe.run_stats.evaluations == Plain().cost(STEPS, guidance_scale=4.0)


def test_method_does_what_attach_does_on_the_stock_pipeline(pipe, stock, family) -> None:
    with attach(stock, PAIR):
        expected = latents(stock, family)
    got = latents(pipe, family, method=PAIR)
    assert torch.equal(got, expected)
    assert not torch.equal(got, latents(stock, family)), "the method does nothing here"
    assert pipe.run_stats.evaluations == PAIR.cost(STEPS, guidance_scale=4.0)


def test_stats_are_those_of_the_last_call(pipe, family) -> None:
    latents(pipe, family, method=PAIR)
    latents(pipe, family)
    assert pipe.run_stats is None


def test_attach_works_on_it_as_on_any_pipeline(pipe, stock, family) -> None:
    with attach(pipe, PAIR) as run:
        got = latents(pipe, family)
    assert run.stats.evaluations == PAIR.cost(STEPS, guidance_scale=4.0)
    with attach(stock, PAIR):
        assert torch.equal(got, latents(stock, family))


def test_signature_and_docstring_are_the_stock_ones_with_method(pipe, stock) -> None:
    ours = inspect.signature(type(pipe).__call__).parameters
    theirs = inspect.signature(type(stock).__call__).parameters
    assert {name: ours[name] for name in ours if name != "method"} == dict(theirs)
    assert ours["method"].kind is inspect.Parameter.KEYWORD_ONLY
    assert "method (`w2sdiff.methods.Method`" in type(pipe).__call__.__doc__
    assert "num_inference_steps (" in type(pipe).__call__.__doc__


def test_saved_and_loaded_again(pipe, stock, family, tmp_path) -> None:
    pipe.save_pretrained(tmp_path)
    with pytest.raises((AttributeError, ValueError)):
        DiffusionPipeline.from_pretrained(tmp_path)  # as pipelines/README.md says
    again = load(tmp_path, family)
    assert torch.equal(latents(again, family, method=PAIR), latents(pipe, family, method=PAIR))
    as_stock = getattr(diffusers, type(stock).__name__).from_pretrained(tmp_path)
    as_stock.set_progress_bar_config(disable=True)
    assert torch.equal(latents(as_stock, family), latents(stock, family))


def test_made_from_a_loaded_pipeline(stock, family) -> None:
    pipe = DiffusionPipeline.from_pipe(
        stock,
        custom_pipeline=str(PIPELINES / FILES[family]),
        trust_remote_code=True,
        torch_dtype=torch.float32,
    )
    pipe.set_progress_bar_config(disable=True)
    assert torch.equal(latents(pipe, family), latents(stock, family))

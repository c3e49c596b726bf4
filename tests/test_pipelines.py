"""The files in `pipelines/`, loaded as a user loads them: `custom_pipeline=` on a saved model."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline

from w2sdiff import W2SD, Guidance, Plain, attach
from w2sdiff.testing import VARIANTS, Variant, variants

PIPELINES = Path(__file__).parent.parent / "pipelines"
FILES = sorted(path.name for path in PIPELINES.glob("*.py"))
# The rest differ in names alone, which a test of its own checks.
QUICK = {"w2s_sdxl.py", "w2s_flux.py", "w2s_wan.py"}
# Variants whose names do not follow from the file's.
OF_FILE = {
    "w2s_flux.py": "flux-true-cfg",
    "w2s_pixart_sigma.py": "pixart",
    "w2s_wan.py": "wan-2.1",
}
STEPS = 4
PAIR = W2SD(strong=Guidance(1.0), weak=Guidance(0.0))
variants()  # fills the table


def variant_of(file: str) -> Variant:
    name = OF_FILE.get(file, file.removeprefix("w2s_").removesuffix(".py").replace("_", "-"))
    if name not in VARIANTS:
        pytest.skip(f"w2sdiff.testing has no variant {name!r} to try {file} with")
    return VARIANTS[name]


def quiet(pipe: DiffusionPipeline) -> DiffusionPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load(folder: Path, file: str) -> DiffusionPipeline:
    return quiet(
        DiffusionPipeline.from_pretrained(
            folder,
            custom_pipeline=str(PIPELINES / file),
            trust_remote_code=True,
            **without(folder),
        )
    )


def without(folder: Path) -> dict[str, None]:
    """Parts that the tiny pipeline is built without, some a VAE; loading wants them named."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    return {name: None for name, part in index.items() if part == [None, None]}


def shared(pipe: DiffusionPipeline, file: str, **settings: object) -> DiffusionPipeline:
    return quiet(
        # Not DiffusionPipeline.from_pipe, which takes optional parts for settings (0.38 to 0.42).
        type(pipe).from_pipe(
            pipe, custom_pipeline=str(PIPELINES / file), trust_remote_code=True, **settings
        )
    )


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(file, marks=[] if file in QUICK else [pytest.mark.slow]) for file in FILES
    ],
)
def file(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def variant(file: str) -> Variant:
    return variant_of(file)


@pytest.fixture(scope="module")
def folder(variant: Variant, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(variant.name)
    variant.build().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def stock(folder: Path) -> DiffusionPipeline:
    # Loaded as the other one is: weights read from a file lie at other addresses than fresh ones,
    # and on some processors MKL adds up in another order for that.
    return quiet(DiffusionPipeline.from_pretrained(folder, **without(folder)))


@pytest.fixture(scope="module")
def pipe(folder: Path, file: str) -> DiffusionPipeline:
    return load(folder, file)


def latents(pipe: DiffusionPipeline, variant: Variant, **changes: object) -> torch.Tensor:
    return variant.latents(pipe, steps=STEPS, **changes)


def test_files_differ_in_names_alone() -> None:
    """What is tested with some of them holds for all."""
    forms = set()
    for path in PIPELINES.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        (imported,) = [
            name.name
            for node in ast.parse(text).body
            if isinstance(node, ast.ImportFrom) and node.module == "diffusers"
            for name in node.names
        ]
        assert f'custom_pipeline="pipelines/{path.name}"' in text
        assert getattr(diffusers, imported).__name__ == imported
        code = text.split('"""\n', 2)[2]
        forms.add(code.replace(imported, "Stock"))
    assert len(forms) == 1


def test_readme_has_a_row_for_every_file() -> None:
    text = (PIPELINES / "README.md").read_text(encoding="utf-8")
    assert [file for file in FILES if f"| [{file}]({file}) |" not in text] == []
    assert [file for file in FILES if text.count(f"pipelines/{file}") < 1] == []


def test_without_a_method_it_is_the_stock_pipeline(pipe, stock, variant) -> None:
    assert torch.equal(latents(pipe, variant), latents(stock, variant))
    assert pipe.run_stats is None


def test_plain_goes_through_the_driver_and_changes_no_bit(pipe, stock, variant) -> None:
    assert torch.equal(latents(pipe, variant, method=Plain()), latents(stock, variant))
    assert pipe.run_stats.evaluations == variant.evaluations * pipe.run_stats.steps > 0


def test_method_does_what_attach_does_on_the_stock_pipeline(pipe, stock, variant) -> None:
    with attach(stock, PAIR) as run:
        expected = latents(stock, variant)
    got = latents(pipe, variant, method=PAIR)
    assert torch.equal(got, expected)
    assert not torch.equal(got, latents(stock, variant)), "the method does nothing here"
    assert pipe.run_stats.evaluations == run.stats.evaluations


def test_stats_are_those_of_the_last_call(pipe, variant) -> None:
    latents(pipe, variant, method=PAIR)
    latents(pipe, variant)
    assert pipe.run_stats is None


def test_attach_works_on_it_as_on_any_pipeline(pipe, stock, variant) -> None:
    with attach(pipe, PAIR):
        got = latents(pipe, variant)
    with attach(stock, PAIR):
        assert torch.equal(got, latents(stock, variant))


def test_signature_and_docstring_are_the_stock_ones_with_method(pipe, stock) -> None:
    ours = inspect.signature(type(pipe).__call__).parameters
    theirs = inspect.signature(type(stock).__call__).parameters
    assert {name: ours[name] for name in ours if name != "method"} == dict(theirs)
    assert ours["method"].kind is inspect.Parameter.KEYWORD_ONLY
    assert "method (`w2sdiff.methods.Method`" in type(pipe).__call__.__doc__
    assert "num_inference_steps (" in type(pipe).__call__.__doc__


def test_saved_and_loaded_again(pipe, stock, file, variant, tmp_path) -> None:
    pipe.save_pretrained(tmp_path)
    with pytest.raises((AttributeError, ValueError)):
        DiffusionPipeline.from_pretrained(tmp_path)  # as pipelines/README.md says
    again = load(tmp_path, file)
    assert torch.equal(latents(again, variant, method=PAIR), latents(pipe, variant, method=PAIR))
    cls = getattr(diffusers, type(stock).__name__)
    as_stock = quiet(cls.from_pretrained(tmp_path, **without(tmp_path)))
    assert torch.equal(latents(as_stock, variant), latents(stock, variant))


def test_made_from_a_loaded_pipeline(stock, file, variant) -> None:
    pipe = shared(stock, file)
    assert torch.equal(latents(pipe, variant), latents(stock, variant))
    with attach(stock, PAIR):
        expected = latents(stock, variant)
    assert torch.equal(latents(pipe, variant, method=PAIR), expected)


def test_from_pipe_shares_the_weights_as_they_are(file, variant) -> None:
    """Also where parts have dtypes of their own; diffusers would make float32 of them all."""
    stock = variant.build()
    variant.network(stock).to(torch.bfloat16)
    before = {
        name: value.dtype
        for name, part in stock.components.items()
        if isinstance(part, torch.nn.Module)
        for name, value in part.named_parameters(name)
    }
    assert set(before.values()) == {torch.float32, torch.bfloat16}
    pipe = shared(stock, file)
    for name, part in stock.components.items():
        assert getattr(pipe, name) is part, name
    for name, part in stock.components.items():
        if isinstance(part, torch.nn.Module):
            for key, value in part.named_parameters(name):
                assert value.dtype == before[key], key
    again = type(pipe).from_pipe(stock)
    assert variant.network(again).dtype == torch.bfloat16
    shared(stock, file, torch_dtype=torch.float16)
    assert variant.network(stock).dtype == torch.float16, "a dtype that is named is obeyed"
    assert pipe.to(torch.float32) is pipe
    assert variant.network(stock).dtype == torch.float32

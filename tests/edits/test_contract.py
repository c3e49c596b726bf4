"""Every registered edit keeps the contract: one row each, and the tests go over the rows.

A row says on which tiny pipeline an edit means something, how it is built there, how it is written
on the command line, and how a user of diffusers would configure the pipeline to the same end by
hand. That last one makes the row more than a smoke test: the role that wears the edit must give
what the hand-made pipeline gives.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from edits import hosts
from edits.hosts import SCALE
from noise_models import close, noise_model_file
from restored import compare, fingerprint
from torch import Tensor
from typer.testing import CliRunner

from w2sdiff import (
    AutoGuidance,
    Checkpoint,
    CompressedKV,
    ControlScale,
    EmbeddedGuidance,
    Experts,
    Guidance,
    IPAdapterScale,
    LearnedGuidance,
    Lora,
    NoControl,
    Plain,
    Prompt,
    SkipLayers,
    attach,
    load_lora,
)
from w2sdiff.cli import app
from w2sdiff.edits import EDITS, Edit, Edits, parse_edits
from w2sdiff.testing import VARIANTS, Variant


@dataclass(frozen=True)
class Row:
    """How one kind of edit is tried out.

    Attributes:
        variant: the pipeline.
        edit: (pipeline, folder to write into) -> the edit; may load things into the pipeline.
        by_hand: brings a pipeline of its own to what the edit does, and may return arguments of
            the call; None: nothing in diffusers does the same.
        text: the edit on the command line; `{folder}` is where `edit` wrote.
    """

    variant: Variant
    edit: Callable[[Any, Any], Edit]
    by_hand: Callable[[Any], Mapping[str, Any] | None] | None
    text: str


# --- how a pipeline is configured by hand ---------------------------------------------------------


def _lora(pipe: Any, folder: Any) -> Edit:
    file = hosts.peft_folder(pipe.transformer, folder / "style")
    load_lora(pipe, file, "style", 0.5)
    return Lora.of_file("style", -1.5, file / "adapter_model.safetensors")


def _lora_by_hand(pipe: Any) -> None:
    """The matrices added to the weights, in plain torch."""
    for layer in pipe.transformer.modules():
        if hasattr(layer, "lora_A"):
            down, up = layer.lora_A["style"].weight, layer.lora_B["style"].weight
            with torch.no_grad():
                layer.base_layer.weight += -1.5 * 3 / 2 * up @ down
                up.zero_()


def _checkpoint(pipe: Any, folder: Any) -> Edit:
    tiny.build_denoiser("sd").save_pretrained(folder / "unet")
    return Checkpoint(folder / "unet")


def _compressed(pipe: Any) -> None:
    from w2sdiff.attention import KVCompression, compress

    compress(pipe.transformer, KVCompression("average", ratio=2, layers="all"))


def _bottom_two(pipe: Any) -> None:
    """Gates written out: the two lowest scores of a softmax, by sorting."""

    def forward(gate: Any, x: Tensor) -> Any:
        scores = (x.reshape(-1, x.shape[-1]) @ gate.weight.T).softmax(-1)
        order = scores.argsort(-1)[:, :2].contiguous()
        return order, scores.gather(-1, order), None

    for module in pipe.transformer.modules():
        if type(module).__name__ == "MoEGate":
            module.forward = forward.__get__(module)


def _noise_model(pipe: Any, folder: Any) -> Edit:
    return LearnedGuidance(noise_model_file(folder / "g.safetensors"))


ROWS: dict[str, Row] = {
    "checkpoint": Row(
        VARIANTS["sd"],
        _checkpoint,
        lambda pipe: setattr(pipe, "unet", tiny.build_denoiser("sd")),
        "checkpoint={folder}/unet",
    ),
    "compressed-kv": Row(
        VARIANTS["pixart"], lambda *_: CompressedKV(ratio=2), _compressed, "compressed-kv=2"
    ),
    "control-scale": Row(
        hosts.SD_CONTROL,
        lambda *_: ControlScale(0.3),
        lambda _: {SCALE: 0.3},
        "control-scale=0.3",
    ),
    "embedded-guidance": Row(
        VARIANTS["flux"],
        lambda *_: EmbeddedGuidance(1.5),
        lambda _: {"guidance_scale": 1.5},
        "embedded-guidance=1.5",
    ),
    "experts": Row(hosts.HIDREAM, lambda *_: Experts("bottom"), _bottom_two, "experts=bottom"),
    "guidance": Row(
        VARIANTS["sdxl"],
        lambda *_: Guidance(2.0),
        lambda _: {"guidance_scale": 2.0},
        "guidance=2",
    ),
    "ip-adapter-scale": Row(
        hosts.IP,
        lambda *_: IPAdapterScale(0.2),
        lambda pipe: pipe.set_ip_adapter_scale(0.2),
        "ip-adapter-scale=0.2",
    ),
    "learned-guidance": Row(
        VARIANTS["sd"], _noise_model, None, "learned-guidance={folder}/g.safetensors"
    ),
    "lora": Row(VARIANTS["pixart"], _lora, _lora_by_hand, "lora:style=-1.5"),
    "no-control": Row(
        hosts.SD_CONTROL, lambda *_: NoControl(), lambda _: {SCALE: 0.0}, "no-control=1"
    ),
    "prompt": Row(
        VARIANTS["sd3"],
        lambda *_: Prompt("two green triangles"),
        lambda _: {"prompt": "two green triangles"},
        'prompt="two green triangles"',
    ),
    "skip-layers": Row(
        VARIANTS["sd3"],
        lambda *_: SkipLayers([0]),
        lambda pipe: pipe.transformer.transformer_blocks.__delitem__(0),
        "skip-layers=0",
    ),
}


# --- the contract ---------------------------------------------------------------------------------

STEPS = 3
kinds = pytest.mark.parametrize("kind", sorted(ROWS))


@dataclass(frozen=True)
class Made:
    """A row's pipeline and edit, with what they draw; the tests share it, for all leave it so."""

    row: Row
    folder: Path
    pipe: Any
    edit: Edit
    stock: Tensor
    edited: Tensor

    def latents(self, method: Any = None) -> Tensor:
        """One call, attached if there is a method."""
        if method is None:
            return self.row.variant.latents(self.pipe, steps=STEPS)
        with attach(self.pipe, method):
            return self.row.variant.latents(self.pipe, steps=STEPS)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    @cache
    def make(kind: str) -> Made:
        row, folder = ROWS[kind], tmp_path_factory.mktemp(kind)
        pipe = row.variant.build()
        edit = row.edit(pipe, folder)
        stock = row.variant.latents(pipe, steps=STEPS)
        with attach(pipe, Plain(edit)):
            edited = row.variant.latents(pipe, steps=STEPS)
        return Made(row, folder, pipe, edit, stock, edited)

    return make


def test_every_registered_edit_has_a_row():
    assert set(ROWS) == set(EDITS)


@kinds
def test_it_is_the_edit_that_the_row_is_of(made, kind):
    assert made(kind).edit.kind == kind


@kinds
def test_it_changes_what_the_network_says(made, kind):
    one = made(kind)
    difference = (one.edited - one.stock).abs().max() / one.stock.abs().max()
    assert difference > 1e-3


@kinds
def test_it_is_what_a_user_of_diffusers_would_configure(made, kind, tmp_path):
    one = made(kind)
    if one.row.by_hand is None:
        pytest.skip("nothing in diffusers does the same")
    pipe = one.row.variant.build()
    one.row.edit(pipe, tmp_path)  # what it loads
    arguments = one.row.by_hand(pipe) or {}
    by_hand = one.row.variant.latents(pipe, steps=STEPS, **arguments)
    close(one.edited, by_hand, scheduler=pipe.scheduler)


@kinds
def test_it_leaves_no_trace_and_does_the_same_when_attached_again(made, kind):
    one = made(kind)
    before = fingerprint(one.pipe)
    assert torch.equal(one.latents(Plain(one.edit)), one.edited)
    compare(before, fingerprint(one.pipe))
    assert torch.equal(one.latents(), one.stock)
    assert torch.equal(one.latents(Plain(one.edit)), one.edited)
    compare(before, fingerprint(one.pipe))


@kinds
def test_a_role_without_it_is_as_called_whoever_spoke_before(made, kind):
    """What strong and weak said before is not heard: the step is the base's, or the weak one's."""
    one = made(kind)
    method = AutoGuidance(weak=one.edit, scale=1 + 1e-12, base=Edits())
    close(one.latents(method), one.stock, scheduler=one.pipe.scheduler, by=1e-6)
    swapped = AutoGuidance(strong=one.edit, scale=0.0)
    close(one.latents(swapped), one.stock, scheduler=one.pipe.scheduler, by=1e-6)


class OnPurposeError(Exception):
    pass


@kinds
def test_it_survives_an_exception_while_its_role_speaks(made, kind):
    one = made(kind)
    before = fingerprint(one.pipe)
    # Inside of whatever network runs, a checkpoint's own included: they all embed their timestep.
    handle = torch.nn.modules.module.register_module_forward_hook(_raise_in_embedding)
    try:
        with pytest.raises(OnPurposeError), attach(one.pipe, Plain(one.edit)):
            one.row.variant.latents(one.pipe, steps=STEPS)
    finally:
        handle.remove()
    compare(before, fingerprint(one.pipe))
    assert torch.equal(one.latents(), one.stock)


def _raise_in_embedding(module, *_):
    if "TimestepEmb" in type(module).__name__:
        raise OnPurposeError


@kinds
def test_it_survives_offloading(made, kind, tmp_path):
    one = made(kind)
    pipe = one.row.variant.build()
    edit = one.row.edit(pipe, tmp_path)
    pipe.enable_model_cpu_offload(device="cpu")
    before = _hooked(pipe)
    assert any(before.values())
    with attach(pipe, Plain(edit)):
        close(one.row.variant.latents(pipe, steps=STEPS), one.edited, scheduler=pipe.scheduler)
    assert _hooked(pipe) == before
    assert torch.equal(one.row.variant.latents(pipe, steps=STEPS), one.stock)


def _hooked(pipe):
    parts = {name: part for name, part in pipe.components.items() if hasattr(part, "modules")}
    return {name: hasattr(part, "_hf_hook") for name, part in parts.items()}


@kinds
def test_it_has_a_json_form(made, kind):
    one = made(kind)
    data = json.loads(json.dumps(Edits((one.edit,)).to_json()))
    assert data[0]["edit"] == kind
    (again,) = Edits.from_json(data)
    assert again == one.edit
    assert hash(again) == hash(one.edit)
    assert torch.equal(one.latents(Plain(again)), one.edited)


@kinds
def test_the_command_line_can_say_it(made, kind):
    one = made(kind)
    (read,) = parse_edits(one.row.text.format(folder=one.folder))
    if isinstance(read, Lora):  # where its file is, is said by --lora
        read = dataclasses.replace(read, sha256=one.edit.sha256)
    assert read == one.edit


def test_it_is_listed():
    shown = CliRunner().invoke(app, ["list", "edits"]).output
    for kind in EDITS:
        lines = [line for line in shown.splitlines() if re.match(rf"{kind}[=:]", line)]
        assert len(lines) == 1, kind
        assert len(lines[0]) <= 100


@kinds
def test_its_docstring_says_where_it_is_from_what_it_costs_and_shows_it(kind):
    text = EDITS[kind].__doc__
    assert "Cost:" in text
    assert ">>>" in text

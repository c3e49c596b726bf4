"""Several edits of one role are entered and undone together, whatever fails in between."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tiny
import torch
from edits import hosts
from restored import compare, fingerprint

import w2sdiff
from w2sdiff import (
    W2SD,
    Checkpoint,
    CompressedKV,
    Experts,
    IPAdapterScale,
    Lora,
    NoControl,
    Plain,
    SkipLayers,
    attach,
)
from w2sdiff.edits import Edit, Edits
from w2sdiff.edits.undo import Undo, assigned, undone_by
from w2sdiff.testing import VARIANTS

# --- the tool -------------------------------------------------------------------------------------


class OnPurposeError(Exception):
    pass


class Interrupting(dict):
    """A dictionary in which the n-th assignment is met by Ctrl-C, or by an error."""

    def __init__(self, values, at, error=KeyboardInterrupt):
        super().__init__(values)
        self.left, self.error = at, error

    def __setitem__(self, key, value):
        self.left -= 1
        if self.left == 0:
            raise self.error
        super().__setitem__(key, value)


@pytest.mark.parametrize("at", range(1, 4))
@pytest.mark.parametrize("error", [KeyboardInterrupt, OnPurposeError])
def test_all_or_none_is_assigned(at, error):
    before = {"a": 1, "b": 2, "c": 3}
    state = Interrupting(before, at, error)
    with pytest.raises(error):
        assigned([(state, key, 0) for key in before])
    assert state == before


@pytest.mark.parametrize("at", range(4, 7))
def test_ctrl_c_while_undoing_does_not_stop_it(at):
    before = {"a": 1, "b": 2, "c": 3}
    state = Interrupting(before, at)
    undo = assigned([(state, key, 0) for key in before])
    assert set(state.values()) == {0}
    with pytest.raises(KeyboardInterrupt):
        undo()
    assert state == before
    undo()  # nothing is left to undo


def failing(name, done, error):
    def step():
        done.append(name)
        if error is not None:
            raise error

    return step


def test_a_step_that_fails_keeps_no_other_from_being_undone():
    done, undo = [], Undo()
    first, second = OnPurposeError("first"), OnPurposeError("second")
    for name, error in (("a", None), ("b", second), ("c", None), ("d", first)):
        undo.add(failing(name, done, error))
    with pytest.raises(OnPurposeError, match="first") as raised:
        undo()
    assert done == ["d", "c", "b", "a"]
    assert raised.value.__notes__ == [
        "Undoing what a role had changed also failed: OnPurposeError('second')"
    ]
    undo()
    assert done == ["d", "c", "b", "a"]


def test_the_error_that_came_first_is_the_one_that_is_raised():
    def change(undo):
        undo.add(failing("a", [], OnPurposeError("while undoing")))
        raise ValueError("while changing")

    with pytest.raises(ValueError, match="while changing") as raised:
        undone_by(change)
    assert "while undoing" in raised.value.__notes__[0]


def test_ctrl_c_is_not_lost_in_another_error():
    undo = Undo()
    undo.add(failing("a", [], KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        undo(OnPurposeError())


# --- edits of a role ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Noting(Edit):
    """Notes when it is entered and undone, and fails where it is told to."""

    log: list[str]
    fails: str = ""
    kind: ClassVar[str] = ""

    def enter(self, context: Any) -> Any:
        del context
        self._note("enter")
        return lambda: self._note("undo")

    def _note(self, what: str) -> None:
        self.log.append(f"{what} {self.kind}")
        if what == self.fails:
            raise OnPurposeError(f"{what} {self.kind}")


class A(Noting):
    kind = "a"


class B(Noting):
    kind = "b"


class C(Noting):
    kind = "c"


def role(log, **fails):
    return Edits(tuple(cls(log, fails.get(cls.kind, "")) for cls in (A, B, C)))


def run(edits, *, in_network=None):
    pipe = tiny.build("sd")
    if in_network is not None:
        pipe.unet.register_forward_hook(in_network)
    with attach(pipe, Plain(edits)):
        tiny.latents(pipe, "sd", steps=1)


def test_they_are_undone_last_first():
    log: list[str] = []
    run(role(log))
    assert log == ["enter a", "enter b", "enter c", "undo c", "undo b", "undo a"]


def test_those_before_one_that_cannot_be_entered_are_undone():
    log: list[str] = []
    with pytest.raises(OnPurposeError, match="enter c"):
        run(role(log, c="enter"))
    assert log == ["enter a", "enter b", "enter c", "undo b", "undo a"]


def test_one_that_cannot_be_undone_keeps_none_of_the_others():
    log: list[str] = []
    with pytest.raises(OnPurposeError, match="undo b") as raised:
        run(role(log, b="undo", a="undo"))
    assert log == ["enter a", "enter b", "enter c", "undo c", "undo b", "undo a"]
    assert "undo a" in raised.value.__notes__[0]


def fail_in_network(*_):
    raise ValueError("in the network")


def test_what_went_wrong_first_is_what_is_raised():
    log: list[str] = []
    with pytest.raises(ValueError, match="in the network") as raised:
        run(role(log, c="undo", a="undo"), in_network=fail_in_network)
    assert log[-3:] == ["undo c", "undo b", "undo a"]
    notes = "\n".join(raised.value.__notes__)
    assert "undo c" in notes
    assert "undo a" in notes


def test_the_end_of_an_attach_undoes_all_of_it_too():
    pipe, done = tiny.build("sd"), []
    called = type(pipe)

    def block(now):
        for name in ("first", "second"):
            now.context.at_end(failing(name, done, OnPurposeError(name)))
        raise ValueError("in the block")

    with pytest.raises(ValueError, match="in the block") as raised, attach(pipe, Plain()) as now:
        block(now)
    assert done == ["second", "first"]
    assert "second" in raised.value.__notes__[0]
    assert type(pipe) is called


# --- Ctrl-C at every line of the edits, and of what enters and undoes them ------------------------


PACKAGE = Path(w2sdiff.__file__).parent
CODE = (str(PACKAGE / "edits"), str(PACKAGE / "drivers" / "run.py"))


def with_lora(folder, seed=0):
    pipe = tiny.build("sd", seed)
    tiny.add_lora(pipe, "sd", folder)
    return pipe


def lora(pipe, folder):
    tiny.add_lora(pipe, "sd", folder)
    return Lora("style", -1.5) | Checkpoint(with_lora(folder, seed=1).unet)


CASES = {
    "lora and checkpoint": (VARIANTS["sd"], lora),
    "no-control": (hosts.SD_CONTROL, lambda *_: Edits((NoControl(),))),
    "experts": (hosts.HIDREAM, lambda *_: Edits((Experts("bottom", 1),))),
    "ip-adapter-scale": (hosts.IP, lambda *_: Edits((IPAdapterScale(0.1),))),
    "skip-layers": (hosts.HIDREAM, lambda *_: Edits((SkipLayers([0, 1]),))),
    "compressed-kv": (VARIANTS["pixart"], lambda *_: Edits((CompressedKV(ratio=2),))),
}


class Tracer:
    """Raises KeyboardInterrupt at the n-th line of the edits that is run; 0: counts them."""

    def __init__(self, at):
        self.at, self.seen = at, 0

    def __call__(self, frame, event, _):
        if not frame.f_code.co_filename.startswith(CODE):
            return None
        if event == "line":
            self.seen += 1
            if self.seen == self.at:
                raise KeyboardInterrupt(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        return self


def traced(tracer, pipe, variant, method):
    sys.settrace(tracer)
    try:
        with attach(pipe, method):
            variant.latents(pipe, steps=1)
    finally:
        sys.settrace(None)


@pytest.mark.parametrize("name", CASES)
def test_an_interrupt_at_any_line_leaves_no_trace(name, tmp_path):
    variant, make = CASES[name]
    pipe = variant.build()
    method = Plain(make(pipe, tmp_path))
    stock = variant.latents(pipe, steps=1)
    with attach(pipe, method):
        variant.latents(pipe, steps=1)  # what is made once per class or process
    before, count = fingerprint(pipe), Tracer(0)
    traced(count, pipe, variant, method)
    assert count.seen > 20
    for at in range(1, count.seen + 1, max(1, count.seen // 60)):
        with pytest.raises(KeyboardInterrupt) as where:
            traced(Tracer(at), pipe, variant, method)
        assert fingerprint(pipe) == before, where.value
    assert torch.equal(variant.latents(pipe, steps=1), stock)


def test_w2sd_of_three_edits_is_bit_for_bit_itself_after_failures(tmp_path):
    pipe = with_lora(tmp_path)
    weak = Lora("style", -1.5) | Checkpoint(with_lora(tmp_path, seed=1).unet)
    stock = tiny.latents(pipe, "sd")
    before = fingerprint(pipe)
    for fails in ("enter", "undo"):
        with pytest.raises(OnPurposeError), attach(pipe, W2SD(weak=weak | B([], fails))):
            tiny.latents(pipe, "sd")
        compare(before, fingerprint(pipe))
    assert torch.equal(tiny.latents(pipe, "sd"), stock)

"""`attach(pipe, method)`: run a method on a stock pipeline that is already loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from w2sdiff.drivers import modular
from w2sdiff.drivers.families import Family, family_of
from w2sdiff.drivers.repeatable import check_guiders
from w2sdiff.drivers.run import Run
from w2sdiff.drivers.taps import copied_as
from w2sdiff.drivers.weave import SLOT, woven_call
from w2sdiff.edits.base import Edit, Edits
from w2sdiff.edits.undo import Undo
from w2sdiff.errors import InputError, UnsupportedError
from w2sdiff.methods.base import Method

DENOISERS = ("unet", "transformer", "transformer_2", "unconditional_transformer")


@contextmanager
def attach(
    pipe: Any,
    method: Method,
    *,
    columns: Mapping[str, Sequence[str]] | None = None,
    family: Family | None = None,
    everywhere: Edit | Edits | None = None,
) -> Iterator[Run]:
    """Sample the calls of `pipe` inside the `with` by `method`; undo it bit for bit afterwards.

    Args:
        pipe: any loaded diffusers pipeline with a denoising loop of its own, a modular one too.
        method: `W2SD`, `ZigZag`, `AutoGuidance`, `Plain`, ...
        columns: columns of a prompt file for `Prompt("@name")`, one value per item of the call.
        family: how the pipeline does classifier-free guidance; None: looked up by its class. Only
            `Guidance` edits need it.
        everywhere: edits that every role wears, those that are "the pipeline as called" included;
            a role's own edit of the same kind stands instead.

    Yields:
        The run; `run.stats` describes the last call: evaluations, calls, seconds, reflection size
        per step.

    Raises:
        InputError: not a method, or the pipeline is attached already.
        UnsupportedError: the pipeline's loop cannot be woven, or `Guidance` is used without a known
            family.

    Example:
        >>> import torch
        >>> from diffusers import DiffusionPipeline
        >>> from w2sdiff import W2SD, Checkpoint, attach, shapes
        >>> pipe = DiffusionPipeline.from_pretrained(shapes.checkpoint_path("shapes-unet"))
        >>> with attach(pipe, W2SD(weak=Checkpoint(shapes.weak_path("shapes-unet")))) as run:
        ...     image = pipe("a red circle", num_inference_steps=4, guidance_scale=3.0).images[0]
        >>> run.stats.evaluations
        20
    """
    if not isinstance(method, Method):
        raise InputError(f"attach takes a method such as W2SD(...), got {method!r}.")
    if not callable(pipe) or not hasattr(pipe, "components"):
        raise InputError(f"attach takes a loaded diffusers pipeline, got {type(pipe).__name__}.")
    if SLOT in pipe.__dict__:
        raise InputError(
            "This pipeline is attached already; leave the first `with attach(...)` before the next."
        )
    called: type = type(pipe)
    is_modular = modular.is_modular(pipe)
    owner, woven = modular.looped_call(pipe) if is_modular else woven_call(called)
    if not is_modular:  # a modular pipeline's guiders are given back what they remembered
        check_guiders(pipe)
    denoisers = [name for name in DENOISERS if pipe.__dict__.get(name) is not None]
    if not denoisers:
        wanted = ", ".join(DENOISERS)
        raise UnsupportedError(f"{called.__name__} has none of the denoisers {wanted}.")
    family = family or (modular.family_of(pipe) if is_modular else family_of(pipe))
    roles = _worn(method, Edits.of(everywhere) or Edits())
    if is_modular:
        modular.check_edits(pipe, roles, family)
    _check_guidance(called, roles, family)
    run = Run(pipe, method, roles, woven, family, columns or {}, denoisers)
    undo = Undo()

    def detach() -> None:
        pipe.__class__ = called
        pipe.__dict__.pop(SLOT, None)

    try:
        undo.add(detach)
        undo.add(run.close)
        pipe.__dict__[SLOT] = run
        pipe.__class__ = _shimmed(called, owner)
        yield run
        undo()
    except BaseException as error:
        undo(error)
        raise
    finally:
        undo()  # nothing, but for an interrupt that came before the first line of another undo


def _worn(method: Method, everywhere: Edits) -> dict[str, Edits]:
    """The edits of every role."""
    worn = {}
    for role, edits in method.roles.items():
        own = edits or Edits()
        kinds = {edit.kind for edit in own}
        worn[role] = own | Edits(tuple(e for e in everywhere if e.kind not in kinds))
    return worn


def _check_guidance(called: type, roles: Mapping[str, Edits], family: Family | None) -> None:
    every = [edit for edits in roles.values() for edit in edits]
    if family is None and any(edit.maps_halves for edit in every):
        raise UnsupportedError(
            f"Edits of guidance need two facts about {called.__name__} that are not known: "
            "how it batches its branches and where its scale lives. "
            "State them: attach(pipe, method, family=Family(layout, scale)), "
            "see w2sdiff.drivers.families; all other edits work without."
        )


@cache
def _shimmed(called: type, owner: type) -> type:
    """`called` with `owner.__call__` woven; `super().__call__` of a subclass reaches that too."""

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        return self.__dict__[SLOT].call(self, args, kwargs)

    __call__.__doc__ = owner.__call__.__doc__
    # Callers ask for its signature.
    __call__.__wrapped__ = owner.__call__  # type: ignore[attr-defined]

    def __reduce_ex__(self: Any, protocol: Any) -> Any:  # noqa: N807
        return copied_as(called, SLOT, super(shim, self).__reduce_ex__(protocol))

    own = {**_described(owner), "__call__": __call__, "__reduce_ex__": __reduce_ex__}
    shim: Any = type(owner.__name__, (owner,), own)
    if called is owner:
        return shim  # type: ignore[no-any-return]
    return type(called.__name__, (called, shim), _described(called))


def _described(cls: type) -> dict[str, Any]:
    return {"__module__": cls.__module__, "__doc__": cls.__doc__}

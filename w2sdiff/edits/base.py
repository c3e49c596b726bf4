"""What a role changes about the network: the `Edit` contract, and `Edits`, several at once.

An edit is a frozen value with a few hooks, all optional:

* `enter(context)` switches something on the pipeline and returns what undoes it exactly: all of it
  or none, also where an exception or Ctrl-C comes in between (see `undo`);
* `networks(context)` names the networks, beside the pipeline's own, that this touches;
* `variables(loop, context)` binds other values to variables that the pipeline's loop reads;
* `inputs(kwargs, context)` replaces keyword arguments of the network;
* `halves(c, u, context)` says what the pipeline's own guidance mix will see as the conditional and
  the unconditional prediction; `needs(context)` which of the two have to be computed for that.

It knows nothing of drivers: everything it may look at is in the `Context` that it is handed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from w2sdiff.edits.undo import Undo
from w2sdiff.errors import InputError
from w2sdiff.forms import check_fields, listed, mapping
from w2sdiff.registry import Registry

if TYPE_CHECKING:
    import torch

    from w2sdiff.levels import Levels

T = TypeVar("T")
Halves = frozenset[str]

BOTH: Halves = frozenset({"c", "u"})
COND: Halves = frozenset({"c"})
UNCOND: Halves = frozenset({"u"})

EDITS: Registry[Edit] = Registry("edit", "w2sdiff.edits")


@dataclass(frozen=True)
class Inputs:
    """What one branch of the network was given: its sample [B, C, ...] and keyword arguments."""

    sample: torch.Tensor
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """One evaluation, as `halves` may look at it; what is not asked for is not computed.

    Attributes:
        step: number of the denoising step, from 0.
        num_steps: how many there are in this call of the pipeline.
        at: level that the network's input is at.
        levels: gives the noise levels of the run.
        branch: gives the inputs of the conditional ("c") or unconditional ("u") branch; None where
            the pipeline makes two calls and has not come to that one yet.
    """

    step: int
    num_steps: int
    at: int
    levels: Callable[[], Levels]
    branch: Callable[[str], Inputs | None]


@dataclass
class Context:
    """What an edit may see while its role speaks.

    Attributes:
        pipe: the pipeline.
        denoisers: names of the pipeline's denoising networks ("unet", "transformer", ...).
        guidance_scale: the scale the pipeline itself mixes with at this step; None while it has no
            unconditional half; for a network with an embedded scale, None as well.
        rescales: the pipeline makes something else of the conditional prediction at this step than
            the mix (a rescaling, perturbed-attention or skip-layer guidance); it is therefore
            needed, as it is.
        embedded: the network takes the guidance scale as an input (`guidance`).
        tap: makes a module answer to the driver like the pipeline's own denoiser.
        columns: per-item columns of the prompt file, by name.
        notes: remarks for `run.stats.notes`.
        request: the evaluation that `halves` is asked about; None outside of one.
    """

    pipe: Any
    denoisers: Sequence[str]
    tap: Callable[[torch.nn.Module], None]
    guidance_scale: float | None = None
    rescales: bool = False
    embedded: bool = False
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    request: Request | None = None
    _attached: dict[Hashable, Any] = field(default_factory=dict)
    _in_call: dict[Hashable, Any] = field(default_factory=dict)
    _at_end: Undo = field(default_factory=Undo)

    def remember(self, key: Hashable, make: Callable[[], T]) -> T:
        """Value of `make()`, made once per `attach` (a loaded checkpoint)."""
        return _once(self._attached, key, make)

    def remember_in_call(self, key: Hashable, make: Callable[[], T]) -> T:
        """Value of `make()`, made once per call (what depends on adapters the user may change)."""
        return _once(self._in_call, key, make)

    def keep_in_call(self, key: Hashable, value: object) -> None:
        """Keep a value until the call of the pipeline ends, in the place of an earlier one."""
        self._in_call[key] = value

    def kept_in_call(self, key: Hashable) -> Any | None:
        """What was kept; None if nothing was."""
        return self._in_call.get(key)

    def begin_call(self, columns: Mapping[str, Sequence[str]]) -> None:
        """A new call of the pipeline starts, with these columns."""
        self.columns = columns
        self._in_call.clear()

    def end_call(self) -> None:
        """The call is over: keep nothing of it."""
        self._in_call.clear()

    def at_end(self, undo: Callable[[], None]) -> None:
        """Call `undo` when the `attach` ends, the last one first."""
        self._at_end.add(undo)

    def end(self) -> None:
        """Undo what lasted for the whole `attach`, and let go of everything remembered."""
        try:
            self._at_end()
        finally:
            self._attached.clear()
            self._in_call.clear()


def _once(memory: dict[Hashable, Any], key: Hashable, make: Callable[[], T]) -> T:
    if key not in memory:
        memory[key] = make()
    value: T = memory[key]
    return value


class Edit:
    """One difference of a role from the pipeline as called; the module says what its hooks do."""

    kind: ClassVar[str]
    changes_weights: ClassVar[bool] = False

    def networks(self, context: Context) -> Iterable[torch.nn.Module]:
        """Modules beside the pipeline's denoisers that `enter` changes or brings in.

        Pipelines of other threads that share one wait until the role has spoken.
        """
        del context
        return ()

    def enter(self, context: Context) -> Callable[[], None] | None:
        """Switch the pipeline to this edit; return what undoes it."""
        del context
        return None

    def variables(self, loop: Mapping[str, Any], context: Context) -> dict[str, Any]:
        """Variables of the pipeline's loop to bind, of those that it reads and does not set."""
        del loop, context
        return {}

    def inputs(self, kwargs: dict[str, Any], context: Context) -> dict[str, Any]:
        """Keyword arguments the network is really called with."""
        del context
        return kwargs

    def needs(self, context: Context) -> Halves | None:
        """Halves that must be computed; None: whatever the pipeline asks for."""
        del context
        return None

    def halves(
        self, c: torch.Tensor | None, u: torch.Tensor | None, context: Context
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Map the computed halves to the pair (c, u) that the pipeline will mix."""
        raise NotImplementedError(f"{type(self).__name__} needs halves but does not map them")

    @property
    def maps_halves(self) -> bool:
        """Whether it must know which half of the network's output is which."""
        return type(self).halves is not Edit.halves

    def to_json(self) -> dict[str, Any]:
        """Plain data from which `Edits.from_json` builds this edit again.

        Raises:
            InputError: the edit holds something that has no JSON form, such as a module in memory.
        """
        return {"edit": self.kind, **dataclasses.asdict(self)}  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Edit:
        """Inverse of `to_json`."""
        fields = {key: value for key, value in data.items() if key != "edit"}
        check_fields(f"the edit {cls.kind!r}", fields, cls)
        try:
            return cls(**fields)
        except TypeError as error:
            message = f"The edit {cls.kind!r} does not take {sorted(fields)}: {error}."
            raise InputError(message) from None

    @classmethod
    def from_text(cls, argument: str | None, value: str) -> Edit:
        """Build from the command line's `name:argument=value`; see `parse_edits`."""
        del argument, value
        raise InputError(f"The edit {cls.kind!r} cannot be written on the command line.")

    def __or__(self, other: Edit | Edits) -> Edits:
        return Edits((self,)) | other


@dataclass(frozen=True)
class Edits:
    """Several edits of different kinds, worn together by one role; made with `a | b`.

    Raises:
        InputError: two edits of one kind.

    Example:
        >>> from w2sdiff import Guidance, Lora
        >>> Guidance(1.0) | Lora("dpo", -1.5)
        Guidance(scale=1.0) | Lora(name='dpo', scale=-1.5, sha256=None)
    """

    items: tuple[Edit, ...] = ()

    def __post_init__(self) -> None:
        """Refuse two of a kind; sort by kind, so that `a | b` and `b | a` are one value and key."""
        kinds = [edit.kind for edit in self.items]
        for kind in kinds:
            if kinds.count(kind) > 1:
                raise InputError(f"Two edits of the kind {kind!r} in one role; keep one: {self}.")
        object.__setattr__(self, "items", tuple(sorted(self.items, key=lambda edit: edit.kind)))

    @classmethod
    def of(cls, value: Edit | Edits | None) -> Edits | None:
        """Normalise what a user gives for a role."""
        if value is None or isinstance(value, Edits):
            return value
        if isinstance(value, Edit):
            return cls((value,))
        raise InputError(f"A role is an edit such as Guidance(1.0), or None; got {value!r}.")

    @property
    def changes_weights(self) -> bool:
        """Whether the network's weights differ while the role speaks."""
        return any(edit.changes_weights for edit in self.items)

    def evaluations(self, guidance_scale: float) -> int:
        """Single-branch evaluations of one request, for a pipeline run at `guidance_scale`."""
        halves: Halves = BOTH if guidance_scale > 1 else COND
        context = Context(pipe=None, denoisers=(), tap=lambda _: None)
        context.guidance_scale = guidance_scale if guidance_scale > 1 else None
        for edit in self.items:
            halves = edit.needs(context) or halves
        return len(halves)

    def to_json(self) -> list[dict[str, Any]]:
        """One dictionary per edit."""
        return [edit.to_json() for edit in self.items]

    @classmethod
    def from_json(cls, data: Sequence[Mapping[str, Any]]) -> Edits:
        """Inverse of `to_json`.

        Raises:
            InputError: no list of edits, an unknown one, or one that lacks a value.
        """
        items = [mapping(item, "An edit") for item in listed(data, "A role")]
        return cls(tuple(EDITS[str(item.get("edit"))].from_json(item) for item in items))

    def __or__(self, other: Edit | Edits) -> Edits:
        more = other.items if isinstance(other, Edits) else (other,)
        return Edits(self.items + more)

    def __iter__(self) -> Iterator[Edit]:
        return iter(self.items)

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.items)) or "Edits()"

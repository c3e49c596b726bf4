"""The vocabulary of a method: `Eval`, `Step`, `Window`, `Method`.

A method is a generator. It yields `Eval(x, role, at)`, gets the network's prediction back, and
returns the `(prediction, x)` for the one real `scheduler.step`. It knows no pipeline, no scheduler
and no network.

Shapes: x and every prediction are [B, ...] tensors in the pipeline's own latent form.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from w2sdiff.edits.base import Edit, Edits
from w2sdiff.errors import InputError
from w2sdiff.forms import check_fields, is_whole, mapping, truth
from w2sdiff.registry import Registry

if TYPE_CHECKING:
    import torch

    from w2sdiff.levels import Levels

METHODS: Registry[Method] = Registry("method", "w2sdiff.methods")

ROLES = ("strong", "weak", "base")
PLACES = ("path", "adapter")  # in JSON: where a file is, beside the hash that says what it is


@dataclass(frozen=True)
class Eval:
    """A request: evaluate the network at x, as this role.

    Attributes:
        x: [B, ...] latents.
        role: "strong", "weak" or "base".
        at: level x is at; Karras-type schedulers scale the network's input by it.
        time: index of the step whose timestep the network is told; None: the step's own.
    """

    x: torch.Tensor
    role: str
    at: int
    time: int | None = None


@dataclass(frozen=True)
class Step:
    """One step of the run, as a method sees it.

    Attributes:
        x: [B, ...] latents at level `this`.
        this: level the step starts from, an index into `levels`.
        in_window: whether the method's window contains the step.
        levels: noise levels of the run, made when first asked for: a scheduler that cannot reflect
            still runs whatever does not move.
    """

    x: torch.Tensor
    this: int
    in_window: bool
    levels: Callable[[], Levels]

    @property
    def next(self) -> int:
        """Level the step ends at."""
        return self.this + 1

    def move(self, x: torch.Tensor, prediction: torch.Tensor, *, at: int, to: int) -> torch.Tensor:
        """Exact first-order move of x between two levels; see `Levels.move`."""
        return self.levels().move(x, prediction, at=at, to=to)

    def invert_as_published(self, x: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
        """Invert from `next` to `this` as published; see `Levels.reference_inversion`."""
        return self.levels().reference_inversion(x, prediction, at=self.next)


Steps = Generator[Eval, "torch.Tensor", tuple["torch.Tensor", "torch.Tensor"]]


@dataclass(frozen=True)
class Window:
    """Which steps of a run a method acts on; by default every step but the last.

    Args:
        start: first step, as a fraction of the run in [0, 1].
        stop: end, exclusive, as a fraction of the run in [0, 1]; `stop=0` is an empty window.
        last: whether fractions may include the last step, whose reflection passes the clean level.
        steps: instead of fractions, the steps' numbers, counted from 0.
        when: instead of fractions, a function of (step, number of steps); has no JSON form.

    Raises:
        InputError: fractions outside [0, 1] or in the wrong order, or two ways at once.

    Example:
        >>> Window(stop=0.5).count(10)
        5
    """

    start: float = 0.0
    stop: float = 1.0
    last: bool = False
    steps: tuple[int, ...] | None = None
    when: Callable[[int, int], bool] | None = None

    def __post_init__(self) -> None:
        """Check the fractions."""
        truth(self.last, "last")
        for name in ("start", "stop"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise InputError(
                    f"window {name} must lie in [0, 1], got {value!r}; "
                    "it is a fraction of the steps, not a step."
                )
        if self.start > self.stop:
            raise InputError(f"window start {self.start} lies after its stop {self.stop}.")
        ways = [(self.start, self.stop) != (0, 1), self.steps is not None, self.when is not None]
        if sum(ways) > 1:
            raise InputError(
                "A window is given by fractions, by steps or by a function, not by two of them."
            )
        if self.steps is not None:
            steps = tuple(self.steps) if isinstance(self.steps, Iterable) else (self.steps,)
            if not all(is_whole(step) and step >= 0 for step in steps):
                raise InputError(f"window steps are numbers counted from 0, got {self.steps!r}.")
            object.__setattr__(self, "steps", steps)

    def contains(self, step: int, num_steps: int) -> bool:
        """Whether step number `step` of `num_steps` is in the window."""
        if self.steps is not None:
            return step in self.steps
        if self.when is not None:
            return bool(self.when(step, num_steps))
        if step == num_steps - 1 and not self.last:
            return False
        # Step counts, not quotients: start=0.3 of 10 steps begins at step 3 in floating point too.
        return round(self.start * num_steps, 9) <= step < round(self.stop * num_steps, 9)

    def count(self, num_steps: int) -> int:
        """Number of steps in the window."""
        return sum(self.contains(step, num_steps) for step in range(num_steps))

    def to_json(self) -> dict[str, Any]:
        """Plain data; a window given by a function has none."""
        if self.when is not None:
            raise InputError(
                "A window given by a function has no JSON form; list its steps instead."
            )
        data = {"start": self.start, "stop": self.stop, "last": self.last, "steps": self.steps}
        return {**data, "steps": None if self.steps is None else list(self.steps)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Window:
        """Inverse of `to_json`.

        Raises:
            InputError: no names and values, an unknown name, or what is no window.
        """
        fields = mapping(data, "A window")
        check_fields("a window", fields, cls)
        if fields.get("when") is not None:
            raise InputError("A window given by a function has no JSON form; list its steps.")
        return cls(**fields)


class Method:
    """Base of all methods: roles, JSON form, key and cost come from the dataclass fields.

    A subclass is a frozen dataclass with a `kind`, a method `steps`, and `evaluations`; its fields
    called "strong", "weak" and "base" are roles.
    """

    kind: ClassVar[str]
    window: Window = Window()

    @property
    def reach(self) -> Window:
        """The steps at which it does something else than plain sampling: mostly its window."""
        return self.window

    def steps(self, step: Step) -> Steps:
        """Ask for evaluations, then return the prediction and the latents to step with."""
        raise NotImplementedError

    def evaluations(self, in_window: bool, guidance_scale: float) -> int:
        """Single-branch evaluations of one step, inside or outside the window."""
        raise NotImplementedError

    def cost(self, num_inference_steps: int, guidance_scale: float = 1.0) -> int:
        """Single-branch network evaluations of a whole run, known before it starts.

        Counted are the branches of classifier-free guidance that the method needs, at each of the
        steps. What was really evaluated is in `run.stats.evaluations`, and the cost is

        * a lower bound where a pipeline evaluates more than those: a third branch for perturbed-
          attention guidance, and for skip-layer guidance in its span; the conditional half at
          `Guidance(0.0)` if the pipeline rescales by it or measures from it (Qwen-Image, these
          two); both halves if FasterCache wants them; a network pass more for each further stage
          of a scheduler (Heun, PNDM's first steps);
        * an upper bound where it does less: image to image at a strength below 1 leaves out steps,
          and a callback or `cfg_truncation` may switch guidance off on the way.

        Args:
            num_inference_steps: number of denoising steps.
            guidance_scale: the pipeline's classifier-free guidance scale; at 1 or below it
                evaluates one branch. For a network with an embedded scale (FLUX), that is
                `true_cfg_scale`.

        Example:
            >>> from w2sdiff import W2SD, Guidance
            >>> pair = W2SD(strong=Guidance(1.0), weak=Guidance(1.0))
            >>> pair.cost(num_inference_steps=50, guidance_scale=5.5)
            198
        """
        if num_inference_steps < 1:
            raise InputError(f"num_inference_steps must be at least 1, got {num_inference_steps}.")
        inside = self.window.count(num_inference_steps)
        outside = num_inference_steps - inside
        cost = outside * self.evaluations(in_window=False, guidance_scale=guidance_scale)
        return cost + inside * self.evaluations(in_window=True, guidance_scale=guidance_scale)

    @property
    def roles(self) -> dict[str, Edits | None]:
        """Edits of each role the method may ask for; None: the pipeline as called."""
        return {role: getattr(self, role, None) for role in ROLES}

    def with_edits(self, change: Callable[[Edit], Edit]) -> Method:
        """The same method with `change(edit)` for each edit (to add a LoRA file's hash, say)."""
        # The fields, not `roles`: what a method adds to a role itself it will add again.
        fields = {field.name for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        given = {role: Edits.of(getattr(self, role)) for role in ROLES if role in fields}
        changed = {
            role: Edits(tuple(change(edit) for edit in edits))
            for role, edits in given.items()
            if edits is not None
        }
        return dataclasses.replace(self, **changed)  # type: ignore[type-var]

    def to_json(self) -> dict[str, Any]:
        """Plain data from which `from_json` builds the method again.

        Raises:
            InputError: something in it has no JSON form (a module in memory, a predicate, a LoRA of
                unknown file).
        """
        data: dict[str, Any] = {"method": self.kind}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            data[field.name] = value.to_json() if isinstance(value, Edits | Window) else value
        return data

    @classmethod
    def of_fields(cls, fields: dict[str, Any]) -> Method:
        """The method with these values of its fields, as `to_json` wrote them."""
        return cls(**fields)

    def key(self) -> str:
        """sha256 of what decides the result: the JSON form without paths, which do not."""
        data = _without_paths(self.to_json())
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

    def _normalise_roles(self) -> None:
        """Bring the roles to one form, and refuse a window that is none."""
        window = self.__dict__.get("window", Method.window)  # some make theirs: it is no field
        if not isinstance(window, Window):
            raise InputError(f"A window is a Window such as Window(stop=0.5); got {window!r}.")
        for role in ROLES:
            if hasattr(self, role):
                object.__setattr__(self, role, Edits.of(getattr(self, role)))


def from_json(data: Mapping[str, Any]) -> Method:
    """Build a method from `Method.to_json`'s data.

    Raises:
        InputError: unknown method or field, or a value that it does not take.

    Example:
        >>> from w2sdiff import ZigZag
        >>> from_json(ZigZag().to_json()) == ZigZag()
        True
    """
    data = mapping(data, "A method")
    cls = METHODS[str(data.pop("method", None))]
    check_fields(f"the method {cls.kind!r}", data, cls)
    fields: dict[str, Any] = {}
    for name, value in data.items():
        if name in ROLES and value is not None:
            fields[name] = Edits.from_json(value)
        elif name == "window":
            fields[name] = Window.from_json(value)
        else:
            fields[name] = value
    try:
        return cls.of_fields(fields)
    except TypeError as error:
        raise InputError(f"The method {cls.kind!r} does not take these fields: {error}.") from None


def role_evaluations(role: Edits | None, guidance_scale: float) -> int:
    """Single-branch evaluations of one request by a role."""
    return (role or Edits()).evaluations(guidance_scale)


def _without_paths(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _without_paths(value) for key, value in data.items() if key not in PLACES}
    return [_without_paths(item) for item in data] if isinstance(data, list) else data

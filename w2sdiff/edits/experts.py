"""`Experts(which, k)`: other experts of a sparse mixture for one role."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args

from w2sdiff.edits.base import EDITS, Context, Edit
from w2sdiff.edits.swap import Answer, swapping
from w2sdiff.edits.undo import Undo, undone_by
from w2sdiff.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from torch import nn

Which = Literal["top", "bottom"]

# What gates, and the layers around them, call the number of experts that a token is sent to: the
# gate of HiDream-I1 (diffusers 0.42) and of DiT-MoE, DeepSeek's layers, Mixtral's.
COUNTS = ("top_k", "num_activated_experts", "num_experts_per_tok")
# And the number of experts there are.
TOTALS = ("n_routed_experts", "num_routed_experts", "num_experts")


@EDITS.register
@dataclass(frozen=True)
class Experts(Edit):
    """experts=WHICH          mixture of experts: top, bottom, a number (of the best), bottom:K=1.

    The expert pair of W2SD (Bai et al. 2025, arXiv 2502.00473, table 3): of eight experts the gate
    sends a token to the two that it scores highest, and the weak model to the two that it scores
    lowest. The scores themselves, which weigh the experts' answers, stay the gate's own.

    A gate is any module with a whole number `top_k` whose `forward` chooses by `torch.topk`: that
    of HiDream-I1, and those that follow DeepSeek's or Mixtral's.

    Args:
        which: "top", "bottom", or a number k for the k best.
        k: how many experts; None: as many as the gate takes.

    Cost: no evaluation; one costs what k experts cost.

    Raises:
        InputError: another word than top and bottom, or k is no positive whole number.
        UnsupportedError: while running, if the network has no such gate, or fewer than k experts.

    Example:
        >>> from w2sdiff import W2SD
        >>> W2SD(weak=Experts("bottom")).weak
        Experts(which='bottom', k=None)
    """

    kind = "experts"
    changes_weights = True
    which: Which | int = "top"
    k: int | None = None

    def __post_init__(self) -> None:
        """Bring `Experts(3)` to the form Experts("top", 3)."""
        if isinstance(self.which, int) and not isinstance(self.which, bool) and self.k is None:
            object.__setattr__(self, "k", self.which)
            object.__setattr__(self, "which", "top")
        if self.which not in get_args(Which):
            raise InputError(f"Experts takes 'top', 'bottom' or a number, got {self.which!r}.")
        whole = isinstance(self.k, int) and not isinstance(self.k, bool)
        if self.k is not None and (not whole or self.k < 1):
            raise InputError(f"The number of experts must be 1 or more, got {self.k!r}.")

    @classmethod
    def from_text(cls, argument: str | None, value: str) -> Experts:
        """`experts=bottom`, `experts=3`, `experts:bottom=3`."""
        if argument is None and value in get_args(Which):
            return cls(value)  # type: ignore[arg-type]
        try:
            k = int(value)
        except ValueError:
            raise InputError(
                f"Write experts=top, experts=bottom, experts=K or experts:bottom=K; got {value!r}."
            ) from None
        return cls("top" if argument is None else argument, k)  # type: ignore[arg-type]

    def enter(self, context: Context) -> Callable[[], None]:
        """Make the gates choose so; the returned function makes them choose as before."""
        denoisers = [context.pipe.__dict__[name] for name in context.denoisers]
        key = ("experts", self, *map(id, denoisers))
        gates, counts = context.remember_in_call(key, lambda: self._found(denoisers))

        def change(undo: Undo) -> None:
            undo.assign((state, name, self.k) for state, name in counts)
            if self.which == "bottom":
                swapping(gates, _lowest)(undo)

        return undone_by(change)

    def _found(self, denoisers: list[nn.Module]) -> tuple[list[Any], list[tuple[Any, str]]]:
        """Gates, and where they and the layers around them keep k."""
        modules = [module for denoiser in denoisers for module in denoiser.modules()]
        gates = [module for module in modules if _is_count(module.__dict__.get("top_k"))]
        if not gates:
            names = ", ".join(type(denoiser).__name__ for denoiser in denoisers)
            raise UnsupportedError(
                f"{names} has no gate that chooses experts by top-k (a module with `top_k`), "
                "so Experts would change nothing."
            )
        if self.k is None:
            return gates, []
        for gate in gates:
            totals = (getattr(gate, name, None) for name in TOTALS)
            total = next((one for one in totals if _is_count(one)), None)
            if total is not None and total < self.k:
                raise UnsupportedError(
                    f"{self.k} experts are asked for, but {type(gate).__name__} has {total}."
                )
        known = {id(gate): gate for gate in gates}
        around = {id(m): m for m in modules if any(id(child) in known for child in m.children())}
        owners = [module.__dict__ for module in {**known, **around}.values()]
        return gates, [(o, name) for o in owners for name in COUNTS if _is_count(o.get(name))]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _lowest(call: Answer, gate: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The gate's own forward, in which `torch.topk` takes the lowest scores."""
    del gate
    with _lowest_first()():
        return call(*args, **kwargs)


@cache
def _lowest_first() -> Any:
    """A mode rather than a patch of `torch.topk`: it holds for this thread and this call only."""
    import torch
    from torch.overrides import TorchFunctionMode

    class LowestFirst(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            del types
            kwargs = kwargs or {}
            if func in (torch.topk, torch.Tensor.topk):
                kwargs = {**kwargs, "largest": False}
            return func(*args, **kwargs)

    return LowestFirst

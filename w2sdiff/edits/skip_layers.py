"""`SkipLayers(layers)`: a network without some of its blocks for one role."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from w2sdiff.edits.base import EDITS, Context, Edit
from w2sdiff.edits.swap import Answer, swapping
from w2sdiff.edits.undo import Undo, undone_by
from w2sdiff.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from torch import nn

# Where diffusers' transformers keep the blocks that are numbered, in the order they run in.
LISTS = (
    *("transformer_blocks", "single_transformer_blocks", "blocks", "layers"),
    *("double_stream_blocks", "single_stream_blocks"),
)


@EDITS.register
@dataclass(frozen=True)
class SkipLayers(Edit):
    """skip-layers=7+9        without these blocks: numbers, ranges (7-9), or names, with a plus.

    Skip-layer guidance of Stable Diffusion 3.5 (diffusers' `skip_guidance_layers`) and of Spatio-
    temporal skip guidance (Hyung et al. 2024, arXiv 2411.18664) take as weak model the network
    with a few blocks left out: what enters such a block leaves it unchanged.

    Args:
        layers: numbers of transformer blocks, from 0 (FLUX: the single-stream blocks follow the
            double-stream ones), or names as in `named_modules`, of a block or of a part of the
            network all of whose blocks are meant. A UNet's blocks have names only:
            "mid_block.attentions.0".

    Cost: no evaluation; one costs less by the blocks that are left out.

    Raises:
        InputError: no layers, or something that is neither a number nor a name.
        UnsupportedError: while running, if the network has no such block, or one that gives back
            something else than it is given.

    Example:
        >>> from w2sdiff import AutoGuidance
        >>> AutoGuidance(weak=SkipLayers([7, 8, 9]), scale=3.8).weak
        SkipLayers(layers=(7, 8, 9))
    """

    kind = "skip-layers"
    changes_weights = True
    layers: tuple[int | str, ...] | Iterable[int | str]

    def __post_init__(self) -> None:
        """Bring the layers to one form."""
        given = self.layers
        single = isinstance(given, str) or not isinstance(given, Iterable)
        layers = (given,) if single else tuple(given)
        if not layers:
            raise InputError("SkipLayers needs at least one layer, got none.")
        for layer in layers:
            name = isinstance(layer, str) and layer
            number = isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0
            if not name and not number:
                raise InputError(f"A layer is a number from 0 or a module's name, got {layer!r}.")
        object.__setattr__(self, "layers", layers)

    @classmethod
    def from_text(cls, argument: str | None, value: str) -> SkipLayers:
        """`skip-layers=7+8+9`, `skip-layers=7-9`, `skip-layers=mid_block.attentions.0`."""
        if argument is not None:
            raise InputError(f"Write skip-layers=7+9; 'skip-layers:{argument}' means nothing.")
        layers: list[int | str] = []
        for part in re.split(r"[+,]", value):
            numbers = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
            if numbers is None and re.fullmatch(r"\s*(\d*-|-\d+)\s*", part):
                raise InputError(f"A range of layers has two ends, such as 7-9; got {part!r}.")
            if numbers is None:
                layers.append(part.strip())
            else:
                first, last = int(numbers[1]), int(numbers[2] or numbers[1])
                if last < first:
                    raise InputError(f"A range of layers goes upwards, got {part.strip()!r}.")
                layers.extend(range(first, last + 1))
        return cls(layers)

    def enter(self, context: Context) -> Callable[[], None]:
        """Leave the blocks out; the returned function puts them in again."""
        denoisers = [context.pipe.__dict__[name] for name in context.denoisers]
        key = ("skip-layers", self, *map(id, denoisers))
        blocks = context.remember(key, lambda: self._blocks(denoisers))

        def change(undo: Undo) -> None:
            for block in blocks:
                swapping([block], _passing(_forward(block)))(undo)

        return undone_by(change)

    def _blocks(self, denoisers: list[nn.Module]) -> list[nn.Module]:
        found = [
            block
            for denoiser in denoisers
            for layer in self.layers
            for block in _blocks_of(getattr(denoiser, "_orig_mod", denoiser), layer)
        ]
        for block in found:
            if returned(_forward(block)) is None:
                raise UnsupportedError(
                    f"{type(block).__name__} gives back something else than it is given and "
                    "cannot be skipped."
                )
        return found


def numbered(network: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer that have numbers, in the order they run in."""
    lists = {name: child for name, child in network.named_children() if name in LISTS}
    return [_inner(block) for name in LISTS if name in lists for block in lists[name].children()]


def _blocks_of(network: nn.Module, layer: int | str) -> list[nn.Module]:
    called = type(network).__name__
    if isinstance(layer, int):
        blocks = numbered(network)
        if not blocks:
            raise UnsupportedError(
                f"The blocks of {called} have no numbers; name them, for example "
                'SkipLayers(["mid_block.attentions.0"]).'
            )
        if layer >= len(blocks):
            raise UnsupportedError(
                f"{called} has no block {layer}; they go from 0 to {len(blocks) - 1}."
            )
        return [blocks[layer]]
    part = dict(network.named_modules()).get(layer)
    if part is None or part is network:
        raise UnsupportedError(f"{called} has no part called {layer!r}.")
    known = {id(block) for block in numbered(network)}
    blocks = [
        module
        for module in part.modules()
        if id(module) in known or "TransformerBlock" in type(module).__name__
    ]
    if not blocks:
        raise UnsupportedError(f"The part {layer!r} of {called} has no transformer block.")
    return blocks


def _inner(block: nn.Module) -> Any:
    """HiDream (diffusers 0.42) wraps each block in one that hands everything on."""
    return block.block if type(block).__name__ == "HiDreamBlock" else block


def _forward(block: nn.Module) -> Any:
    return inspect.unwrap(type(block).forward)


def returned(forward: Any) -> tuple[tuple[str, ...], bool] | None:
    """What a block gives back, read from its source: (arguments by name, whether in a tuple).

    Blocks give back their own arguments, changed, in an order that differs from network to network;
    their `return` says which. None: they give back something else, or the source is not there.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(forward)))
    except (OSError, TypeError, SyntaxError):
        return None
    values = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return)]
    if len(values) != 1 or values[0] is None:
        return None
    several = isinstance(values[0], ast.Tuple)
    parts = values[0].elts if isinstance(values[0], ast.Tuple) else [values[0]]
    names = tuple(part.id for part in parts if isinstance(part, ast.Name))
    if len(names) != len(parts) or not set(names) <= set(_arguments(forward)):
        return None
    return names, several


def _arguments(forward: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)[1:]


@cache
def _passing(forward: Any) -> Answer:
    """Gives back what the block was given, as its `forward` would order it."""
    found = returned(forward)
    assert found is not None  # `_blocks` has refused it otherwise
    (names, several), arguments = found, _arguments(forward)

    def answer(call: Answer, block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        del call, block
        given = {**dict(zip(arguments, args, strict=False)), **kwargs}
        passed = tuple(given[name] for name in names)
        return passed if several else passed[0]

    return answer

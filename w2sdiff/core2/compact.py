"""The compact noise model: a short transformer over latent patches that reads the host's text.

The published form has one set of low-rank weights per step. Here one adapter is conditioned on the
noise level instead, so that a model is tied to no number of steps, and its size follows the host's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2sdiff.core2.last_prompt import LastPrompt
from w2sdiff.core2.noise_model import Given, NoiseModel
from w2sdiff.errors import InputError
from w2sdiff.levels import Prediction

__all__ = ["CompactConfig", "CompactNoiseModel", "flops_of"]

T = TypeVar("T")
_REMEMBERED = 1000  # noise levels and grids
_OCTAVES = 16  # frequencies that tell the noise level
_CONDITION = 64  # width of what they become
_CLEAN = 5.0  # x0 is believed up to so many standard deviations: nearly pure noise says nothing


@dataclass(frozen=True)
class CompactConfig:
    """Sizes of a compact noise model.

    Attributes:
        channels: of the prediction.
        prediction: what the host predicts.
        text_width: of the host's token embeddings; None: the model reads no text.
        width: of its tokens, a multiple of 8 and of `heads`.
        depth: number of blocks.
        heads: of its attention.
        patch: side of the square of latents that is one token (1 for packed latents).
        hidden: width of its feed-forward layers, in `width`s.

    Raises:
        InputError: a size below 1, or a width that the heads do not divide.
    """

    channels: int
    prediction: Prediction
    text_width: int | None
    width: int = 64
    depth: int = 1
    heads: int = 4
    patch: int = 1
    hidden: int = 2

    def __post_init__(self) -> None:
        """Check the sizes."""
        for name in ("channels", "width", "depth", "heads", "patch", "hidden"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} of a noise model is at least 1, got {value!r}")
        if self.width % 8 or self.width % self.heads:
            raise InputError(
                f"the width of a noise model is a multiple of 8 and of its {self.heads} heads, "
                f"got {self.width}"
            )


class CompactNoiseModel(NoiseModel):
    """g(c) = c + r(level) f(x, c, x0 | level, text), a prediction of what guidance adds.

    r is the root mean square of guided - c at a noise level, measured on the data, so that f has
    unit size at every level. f is a transformer over patches: attention among them and to the
    text, layers modulated by the level. It sees the latents x and the prediction c, and x0 that
    both imply.

    Shapes: c and x are [B, C, *grid] with any number of grid axes, or packed [B, N, C].
    """

    form = "compact"

    def __init__(self, config: CompactConfig) -> None:
        """Make a model that predicts no guidance at all, until it is trained."""
        super().__init__()
        self.sizes = config
        patch, width = config.patch**2, config.width
        self.embed = nn.Linear(3 * config.channels * patch, width)
        self.level = nn.Sequential(
            nn.Linear(2 * _OCTAVES, _CONDITION), nn.SiLU(), nn.Linear(_CONDITION, _CONDITION)
        )
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.modulate = nn.Linear(_CONDITION, 2 * width)
        self.predict = nn.Linear(width, config.channels * patch)
        for layer in (self.modulate, self.predict):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        # Read off the data by `calibrate`: log-SNR of some levels, log r there, sizes of x and x0.
        self.register_buffer("knots", torch.tensor([-20.0, 20.0]))
        self.register_buffer("sizes_at_knots", torch.zeros(2))
        self.register_buffer("clean_size", torch.ones(()))
        self._forget()

    @property
    def channels(self) -> int | None:
        """Channels of the prediction."""
        return self.sizes.channels

    def to_config(self) -> dict[str, Any]:
        """The sizes, and how many noise levels were measured."""
        return {**dataclasses.asdict(self.sizes), "knots": len(self.knots)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> CompactNoiseModel:
        """Inverse of `to_config`."""
        sizes = {name: value for name, value in config.items() if name != "knots"}
        model = cls(CompactConfig(**sizes))
        model.knots = torch.zeros(config["knots"])
        model.sizes_at_knots = torch.zeros(config["knots"])
        return model

    def calibrate(
        self, log_snr: Sequence[float], sizes: Sequence[float], clean_size: float
    ) -> None:
        """Set what the data says.

        Args:
            log_snr: log(alpha^2/sigma^2) of some levels, ascending, finite.
            sizes: root mean square of guided - c at each.
            clean_size: root mean square of x0.
        """
        floor = max(sizes) * 1e-4 or 1.0
        self.knots = torch.tensor(list(log_snr), dtype=torch.float32)
        self.sizes_at_knots = torch.tensor([math.log(max(size, floor)) for size in sizes])
        self.clean_size = torch.tensor(float(clean_size) or 1.0)

    def forward(self, c: Tensor, given: Given) -> Tensor:
        """c, and what guidance adds."""
        size = self.size_at(given, c).reshape(-1, *[1] * (c.ndim - 1))
        return c + (size * self.unit(c, given)).to(c.dtype)

    def size_at(self, given: Given, c: Tensor) -> Tensor:
        """Size r of guided - c at the level of a batch. Shape: [B], or [1] if all agree."""
        if self._remembers:
            return self._level(given, c).size
        return self._size(self._log_snr(given, c))

    def unit(self, c: Tensor, given: Given) -> Tensor:
        """f, of unit size at every level. Shape: as c."""
        level = self._level(given, c)
        tokens, grid = self._tokens(torch.cat(self._seen(c, given), _axis(c)).to(self.dtype))
        tokens = self.embed(tokens) + self._places(grid, given.positions, c)
        told, mask = self._told(given)
        for block, scales, words in zip(self.blocks, level.blocks, told, strict=True):
            tokens = block(tokens, scales, words, mask)
        out: Tensor = self.predict(_modulated(tokens, *level.last))
        return self._untokens(out, grid, c)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.embed.weight.dtype

    # ---- what does not depend on the picture: computed once where the weights stand still

    def _level(self, given: Given, c: Tensor) -> _Level:
        if not self._remembers or torch.is_tensor(given.alpha):
            return self._make_level(given, c)
        key = ("level", given.alpha, given.sigma, c.device)
        return self._once(key, lambda: self._make_level(given, c))

    def _make_level(self, given: Given, c: Tensor) -> _Level:
        level = self._log_snr(given, c)
        rates = torch.logspace(-1, 1, _OCTAVES, 2.0, device=c.device) / 2
        angles = level[:, None] * rates
        condition = F.silu(self.level(torch.cat([angles.sin(), angles.cos()], 1).to(self.dtype)))
        return _Level(
            self._size(level),
            [block.scales(condition) for block in self._blocks],
            self.modulate(condition)[:, None].chunk(2, -1),
        )

    def _told(self, given: Given) -> tuple[list[Words], Tensor | None]:
        """Keys and values of the text for every block, and its mask."""
        text, mask = given.text, given.mask
        if text is None or self.sizes.text_width is None:
            return [None] * len(self.blocks), None
        if not self._remembers:
            return self._make_told(text, mask)
        tensors = (text,) if mask is None else (text, mask)
        return self._last_text.get(tensors, lambda: self._make_told(text, mask))

    def _make_told(self, text: Tensor, mask: Tensor | None) -> tuple[list[Words], Tensor | None]:
        if mask is not None:  # what is padding in all of them costs and says nothing
            longest = max(1, int(mask.sum(1).max()))
            text, mask = text[:, :longest], mask[:, :longest].bool()[:, None, None]
        text = F.layer_norm(text.to(self.dtype), text.shape[-1:])
        return [block.words(text) for block in self._blocks], mask

    def _places(self, grid: tuple[int, ...], positions: Tensor | None, c: Tensor) -> Tensor:
        def make() -> Tensor:
            return _positions(grid, positions, self.sizes.width, c.device).to(self.dtype)

        if not self._remembers or positions is not None:
            return make()
        return self._once(("places", grid, c.device), make)

    @property
    def _blocks(self) -> list[_Block]:
        return [block for block in self.blocks if isinstance(block, _Block)]

    @property
    def _remembers(self) -> bool:
        return not self.training and not torch.is_grad_enabled()

    def _once(self, key: Hashable, make: Callable[[], T]) -> T:
        if key not in self._memory:
            if len(self._memory) > _REMEMBERED:
                self._memory.clear()
            self._memory[key] = make()
        found: T = self._memory[key]
        return found

    def _forget(self) -> None:
        self._memory: dict[Hashable, Any] = {}
        self._last_text: LastPrompt[tuple[list[Words], Tensor | None]] = LastPrompt()

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._forget()  # to another device or type
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As of any module; what was computed with the old weights is forgotten."""
        self._forget()
        return super().load_state_dict(*args, **kwargs)

    def train(self, mode: bool = True) -> CompactNoiseModel:
        """As of any module: after training, nothing computed before is true any more."""
        self._forget()
        return super().train(mode)

    # ---- the picture

    def _seen(self, c: Tensor, given: Given) -> list[Tensor]:
        """x, c and the x0 that they imply, of about unit size."""
        shape = (-1, *[1] * (c.ndim - 1))
        alpha, sigma = (
            torch.as_tensor(v, dtype=torch.float32, device=c.device).reshape(shape)
            for v in (given.alpha, given.sigma)
        )
        x0 = _clean(self.sizes.prediction, given.x.float(), c.float(), alpha, sigma)
        x0 = x0 / self.clean_size
        return [given.x.float(), c.float(), x0.clamp(-_CLEAN, _CLEAN)]

    def _log_snr(self, given: Given, c: Tensor) -> Tensor:
        """log(alpha^2/sigma^2), within what was measured. Shape: [B], or [1] if all agree."""
        alpha, sigma = (
            torch.as_tensor(v, dtype=torch.float32, device=c.device).reshape(-1)
            for v in (given.alpha, given.sigma)
        )
        ratio = 2 * (alpha.clamp(min=1e-6).log() - sigma.clamp(min=1e-6).log())
        return ratio.clamp(self.knots[0].float(), self.knots[-1].float())

    def _size(self, level: Tensor) -> Tensor:
        """Size r at a level: linear between the measured ones, in logarithms. Shape: [B]."""
        knots, sizes = self.knots.float(), self.sizes_at_knots.float()
        right = torch.searchsorted(knots, level).clamp(1, len(knots) - 1)
        left = right - 1
        share = (level - knots[left]) / (knots[right] - knots[left]).clamp(min=1e-6)
        return sizes[left].lerp(sizes[right], share.clamp(0, 1)).exp()

    def _tokens(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """[B, C, *grid] or [B, N, C] to [B, N, C patch^2], and the grid of tokens."""
        if x.ndim == 3:
            return x, (x.shape[1],)
        patch, (*frames, height, width) = self.sizes.patch, x.shape[2:]
        if height % patch or width % patch:
            raise InputError(
                f"latents of {height}x{width} are no multiple of the noise model's patch {patch}"
            )
        grid = (*frames, height // patch, width // patch)
        split = x.reshape(*x.shape[:2], -1, grid[-2], patch, grid[-1], patch)
        return split.permute(0, 2, 3, 5, 1, 4, 6).reshape(len(x), math.prod(grid), -1), grid

    def _untokens(self, tokens: Tensor, grid: tuple[int, ...], c: Tensor) -> Tensor:
        if c.ndim == 3:
            return tokens
        patch, channels = self.sizes.patch, self.sizes.channels
        split = tokens.reshape(len(c), -1, grid[-2], grid[-1], channels, patch, patch)
        return split.permute(0, 4, 1, 2, 5, 3, 6).reshape(c.shape)


Words = tuple[Tensor, Tensor] | None
"""Keys and values of a text in one block."""


@dataclass(frozen=True)
class _Level:
    """What a model does with a noise level: r, and how it modulates its layers."""

    size: Tensor
    blocks: list[tuple[Tensor, ...]]
    last: tuple[Tensor, ...]


class _Block(nn.Module):
    """Attention among the tokens, to the text, and a feed-forward layer, modulated by the level."""

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.modulate = nn.Linear(_CONDITION, 6 * width)
        self.mix, self.mixed = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.read: nn.Linear | None = None
        # Nothing that is not used: several processes would wait for its gradients.
        if config.text_width is not None:
            self.ask, self.told = nn.Linear(width, width), nn.Linear(width, width)
            self.read = nn.Linear(config.text_width, 2 * width)
        self.think = nn.Linear(width, config.hidden * width)
        self.thought = nn.Linear(config.hidden * width, width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def scales(self, condition: Tensor) -> tuple[Tensor, ...]:
        """How a noise level modulates its three layers."""
        found: Tensor = self.modulate(condition)
        return found[:, None].chunk(6, -1)

    def words(self, text: Tensor) -> Words:
        """Keys and values of the text."""
        if self.read is None:
            return None
        k, v = (self._split(part) for part in self.read(text).chunk(2, -1))
        return k, v

    def forward(
        self, tokens: Tensor, scales: Sequence[Tensor], words: Words, mask: Tensor | None
    ) -> Tensor:
        """[B, N, width] to the same."""
        seen = _modulated(tokens, scales[0], scales[1])
        q, k, v = (self._split(part) for part in self.mix(seen).chunk(3, -1))
        tokens = tokens + self.mixed(_join(F.scaled_dot_product_attention(q, k, v)))
        if words is not None:
            q = self._split(self.ask(_modulated(tokens, scales[2], scales[3])))
            told = F.scaled_dot_product_attention(q, *words, attn_mask=mask)
            tokens = tokens + self.told(_join(told))
        seen = self.think(_modulated(tokens, scales[4], scales[5]))
        added: Tensor = self.thought(F.gelu(seen, approximate="tanh"))
        return tokens + added

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


def flops_of(model: NoiseModel, c: Tensor, given: Given) -> float:
    """Operations of one application to one item, counted by torch on tensors without data.

    Args:
        model: the noise model.
        c: [1, C, ...] a prediction of the size in question; only its shape matters.
        given: what goes with it.
    """
    from torch.utils.flop_counter import FlopCounterMode

    # In training it remembers nothing, so that what is computed once a run counts as well.
    mode = model.training
    model.train()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(c, given)
    finally:
        model.train(mode)
    return float(counter.get_total_flops())


def _modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],)) * (1 + scale) + shift


def _join(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def _axis(x: Tensor) -> int:
    """Of the channels."""
    return -1 if x.ndim == 3 else 1


def _clean(prediction: Prediction, x: Tensor, c: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x0 from x and the prediction, where x is not pure noise."""
    match prediction:
        case "epsilon":
            return (x - sigma * c) / alpha.clamp(min=1e-3)
        case "sample":
            return c
        case "v":
            return (alpha * x - sigma * c) / (alpha**2 + sigma**2)
        case "edm":
            return (alpha * x + sigma * c) / (alpha**2 + sigma**2)
        case "flow":
            return (x - sigma * c) / (alpha + sigma)


def _positions(
    grid: tuple[int, ...], given: Tensor | None, width: int, device: torch.device
) -> Tensor:
    """Sines of where each token is, so that any size of picture has places. Shape: [N, width]."""
    if given is not None and len(grid) == 1:
        places = given.to(device, torch.float32)
    else:
        axes = [torch.arange(n, device=device, dtype=torch.float32) for n in grid]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(grid))
    places = places[:, -2:]  # frames of a video share their places
    count = width // (2 * places.shape[1])
    rates = torch.logspace(0, -2, count, 10.0, device=device) * (math.pi / 4)
    angles = (places[..., None] * rates).flatten(1)
    found = torch.cat([angles.sin(), angles.cos()], 1)
    return F.pad(found, (0, width - found.shape[1]))

"""Gaussian mixtures whose diffusion is known in closed form: toys with an exact truth.

A mixture diffused to any noise level is a mixture again, so the perfect network for it is a
formula. A `Trial` is a truth and two such networks that get its weights wrong, one of them worse:
everything that weak-to-strong methods claim can be checked on it in seconds, with no training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from w2sdiff.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from w2sdiff.levels import Levels

Network = Callable[["Tensor", int], "Tensor"]


@dataclass(frozen=True, eq=False)
class Mixture:
    """Isotropic Gaussians of one width, `sum_k weights[k] N(means[k], std ** 2)`.

    Attributes:
        means: Shape: [K, D].
        weights: Shape: [K], positive; normalised on construction.
        std: Width of every component. Default 0.4.

    Example:
        >>> coin = Mixture(torch.tensor([[-4.0], [4.0]]), torch.tensor([1.0, 3.0]))
        >>> coin.weights
        tensor([0.2500, 0.7500])
        >>> coin.masses(torch.tensor([[-3.9], [4.2], [3.8], [4.0]]))
        tensor([0.2500, 0.7500])
    """

    means: Tensor
    weights: Tensor
    std: float = 0.4

    def __post_init__(self) -> None:
        """Normalise the weights; refuse those that are no distribution."""
        if self.means.ndim != 2 or self.weights.shape != self.means.shape[:1]:
            raise InputError(
                f"expected means [K, D] and weights [K], got {tuple(self.means.shape)} "
                f"and {tuple(self.weights.shape)}"
            )
        if not (self.weights > 0).all() or self.std <= 0:
            raise InputError("weights and std must be positive")
        object.__setattr__(self, "weights", self.weights / self.weights.sum())

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """`n` exact samples. Shape: [n, D]."""
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[which] + self.std * noise

    def density(self, x: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
        """Density of `alpha * x0 + sigma * noise` at `x`. Shape: [n, D] -> [n]."""
        variance = (alpha * self.std) ** 2 + sigma**2
        exponent = self._log_joint(x, alpha, variance) - x.square().sum(-1, True) / (2 * variance)
        return exponent.exp().sum(-1) / math.pow(2 * math.pi * variance, x.shape[-1] / 2)

    def predict(self, x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        """Posterior means (x0, noise) given `x = alpha * x0 + sigma * noise`. Shape: [n, D] each.

        The two are computed apart, not one from the other: neither alpha nor sigma is divided by,
        so both ends of the path are exact.
        """
        variance = (alpha * self.std) ** 2 + sigma**2
        centre = self._log_joint(x, alpha, variance).softmax(-1) @ self.means
        residual = (x - alpha * centre) / variance
        return centre + alpha * self.std**2 * residual, sigma * residual

    def network(self, levels: Levels) -> Network:
        """The perfect network for this mixture, told a step index: `f(x, i) -> prediction`."""

        def predict(x: Tensor, i: int) -> Tensor:
            alpha, sigma = float(levels.alpha[i]), float(levels.sigma[i])
            x0, noise = self.predict(x, alpha, sigma)
            match levels.prediction:
                case "epsilon":
                    return noise
                case "sample":
                    return x0
                case "v":
                    return alpha * noise - sigma * x0
                case "edm":
                    return sigma * x0 - alpha * noise
                case "flow":
                    return noise - x0

        return predict

    def masses(self, x: Tensor) -> Tensor:
        """Share of samples nearest to each mean. Shape: [n, D] -> [K]."""
        nearest = torch.cdist(x, self.means.to(x)).argmin(-1)
        return torch.bincount(nearest, minlength=len(self.means)).to(x.dtype) / len(x)

    def _log_joint(self, x: Tensor, alpha: float, variance: float) -> Tensor:
        """Log of weight times kernel, short of terms without k. Shape: [n, D] -> [n, K]."""
        squares = self.means.square().sum(-1)
        overlap = alpha * x @ self.means.T - alpha**2 * squares / 2
        return self.weights.log() + overlap / variance


@dataclass(frozen=True, eq=False)
class Trial:
    """A truth, and two models of it: the strong one is wrong, the weak one more so.

    Attributes:
        truth: What samples should look like.
        strong: The better model.
        weak: The worse model, with the same kind of error.
    """

    truth: Mixture
    strong: Mixture
    weak: Mixture

    @classmethod
    def biased(cls, means: Tensor, weights: Tensor, bias: Tensor, std: float = 0.4) -> Trial:
        """Strong weights are off by `exp(-bias)` per component, weak ones by its square.

        This is the case in which the weak model errs in the same direction, twice as far
        (W2SD, arXiv 2502.00473, Theorem 2), so that strong ** 2 / weak is the truth.

        Args:
            means: Shape: [K, D].
            weights: Of the truth. Shape: [K].
            bias: Log of what the strong model takes from each component. Shape: [K].
            std: Width of every component.
        """
        return cls(
            Mixture(means, weights, std),
            Mixture(means, weights * (-bias).exp(), std),
            Mixture(means, weights * (-2 * bias).exp(), std),
        )

    def networks(self, levels: Levels) -> dict[str, Network]:
        """One perfect network per role; `base` is the strong one."""
        strong, weak = self.strong.network(levels), self.weak.network(levels)
        return {"strong": strong, "weak": weak, "base": strong}


def two_peaks() -> Trial:
    """Equal peaks at -4 and +4; the strong model has 20% of the left one, the weak one 6%."""
    means = torch.tensor([[-4.0], [4.0]], dtype=torch.float64)
    bias = torch.tensor([math.log(4.0), 0.0], dtype=torch.float64)
    return Trial.biased(means, torch.ones(2, dtype=torch.float64), bias)


def eight_modes() -> Trial:
    """Eight modes in a row with unequal weights; the models starve the right-hand ones."""
    k = torch.arange(8, dtype=torch.float64)
    means = (2.0 * k - 7.0)[:, None]
    return Trial.biased(means, 1 + (5 * k) % 8, 0.3 * k, std=0.25)


def missing_region() -> Trial:
    """Nine blobs in the plane; the weak model has all but lost one corner, the strong one half."""
    grid = torch.tensor([-4.0, 0.0, 4.0], dtype=torch.float64)
    means = torch.cartesian_prod(grid, grid)
    bias = torch.tensor([0.0, 0, 0, 0, 0, 1, 0, 1, 2], dtype=torch.float64)
    return Trial.biased(means, torch.ones(9, dtype=torch.float64), bias, std=0.5)


def total_variation(p: Tensor, q: Tensor) -> float:
    """Half the L1 distance of two distributions on the same K points: 0 equal, 1 disjoint."""
    return float((p - q).abs().sum() / 2)


def sliced_wasserstein(x: Tensor, y: Tensor, projections: int = 64, seed: int = 0) -> float:
    """Mean 1-Wasserstein distance of two equally large samples over random directions.

    Args:
        x: Shape: [n, D].
        y: Shape: [n, D].
        projections: Number of directions; one suffices, and is used, in one dimension.
        seed: Of the directions, so that two distances can be compared.
    """
    if x.shape != y.shape:
        raise InputError(f"expected samples of one shape, got {tuple(x.shape)}, {tuple(y.shape)}")
    if x.shape[1] == 1:
        projections = 1
    g = torch.Generator().manual_seed(seed)
    directions = torch.randn(x.shape[1], projections, generator=g, dtype=x.dtype)
    directions = directions / directions.norm(dim=0)
    sorted_x, sorted_y = ((points @ directions).sort(dim=0).values for points in (x, y))
    return float((sorted_x - sorted_y).abs().mean())

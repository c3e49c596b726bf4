"""The running average of a network's weights, which is what a training validates and keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["Average"]


class Average:
    """An exponential moving average of weights, beside them.

    Args:
        live: the weights by name, as the network itself has them: they are followed, and written to
            while the average is worn.

    Attributes:
        weights: the average, by the same names.

    Example:
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> _ = layer.weight.data.fill_(1.0)
        >>> average = Average(dict(layer.named_parameters()))
        >>> _ = layer.weight.data.fill_(3.0)
        >>> average.follow(0.5)
        >>> with average.worn():
        ...     layer.weight.item()
        2.0
        >>> layer.weight.item()
        3.0
    """

    def __init__(self, live: Mapping[str, Tensor]) -> None:
        self._live = dict(live)
        self.weights = {name: tensor.detach().clone() for name, tensor in self._live.items()}

    def follow(self, decay: float) -> None:
        """Let the average follow the weights: decay · average + (1 - decay) · weights."""
        with torch.no_grad():
            for name, tensor in self._live.items():
                self.weights[name].lerp_(tensor.detach().to(self.weights[name]), 1 - decay)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take up an average that was saved."""
        for name, tensor in self._live.items():
            self.weights[name] = weights[name].to(tensor.device)

    @contextmanager
    def worn(self) -> Iterator[None]:
        """The network has the averaged weights; afterwards its own again, bit for bit."""
        own = {name: tensor.detach().clone() for name, tensor in self._live.items()}
        self._put(self.weights)
        try:
            yield
        finally:
            self._put(own)

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self._live.items():
                tensor.copy_(weights[name])

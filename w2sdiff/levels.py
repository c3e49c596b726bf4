"""Noise levels of a run, and one exact first-order move between any two of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from w2sdiff.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from torch import Tensor

Prediction = Literal["epsilon", "sample", "v", "edm", "flow"]


@dataclass(frozen=True, eq=False)
class Levels:
    """The noise levels a sampler passes through, `x = alpha * x0 + sigma * noise` at each.

    Level `i` is the input of step `i`; level `n` is what the last step produces. All arithmetic on
    coefficients is float64 on the CPU and reaches the device as Python numbers: no synchronisation.

    A sampler may land beside the level its next step assumes (DDIM with `linspace` spacing does).
    `landing` says where. A move runs from the *input* level of the noisier index to the *landing*
    of the other, in both directions, so one step down equals the sampler's own and a step down
    and up with the same (x0, noise) is the identity.

    Attributes:
        alpha: Signal part of each level. Shape: [n + 1], float64, CPU.
        sigma: Noise part of each level. Shape: [n + 1], float64, CPU.
        scale: What the sampler's own latents are multiplied by to be `alpha * x0 + sigma * noise`:
            1, or `1 / sqrt(1 + sigma_k ** 2)` where they are `x0 + sigma_k * noise`; with EDM's
            preconditioning divided by the spread of its data. Shape: [n + 1].
        prediction: What the network predicts: the noise, x0, `v = alpha * noise - sigma * x0`
            (Salimans and Ho 2022), its negative (the raw output F of EDM, Karras et al. 2022,
            equation 7) or the flow `noise - x0`.
        timesteps: What the network is told at each step. Shape: [n].
        landing: (alpha, sigma) that each step produces. Shape: [n] each. None: the next level's.
        published: The published reflection code this sampler is covered by, if any; see
            `reference_inversion`.

    Example:
        >>> levels = Levels.flow(4)
        >>> x, velocity = torch.zeros(1, 2), torch.ones(1, 2)
        >>> down = levels.move(x, velocity, at=0, to=1)
        >>> down
        tensor([[-0.2500, -0.2500]])
        >>> torch.equal(levels.move(down, velocity, at=1, to=0), x)
        True
    """

    alpha: Tensor
    sigma: Tensor
    scale: Tensor
    prediction: Prediction
    timesteps: Tensor
    landing: tuple[Tensor, Tensor] | None = None
    published: Literal["ddim", "flow"] | None = None

    def __post_init__(self) -> None:
        """Check that shapes agree, so that a wrong construction fails here and not in a step."""
        n = len(self.timesteps)
        if not len(self.alpha) == len(self.sigma) == len(self.scale) == n + 1:
            raise InputError(
                f"{n} timesteps need {n + 1} levels; got alpha {len(self.alpha)}, "
                f"sigma {len(self.sigma)}, scale {len(self.scale)}"
            )
        if self.prediction not in get_args(Prediction):
            raise InputError(
                f"prediction must be one of {get_args(Prediction)}, got {self.prediction!r}"
            )

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> Levels:
        """Read the levels of a diffusers scheduler after its `set_timesteps`.

        Args:
            scheduler: Any first-order or multistep scheduler of the VP, sigma or flow kind. It is
                only read, never stepped, and recognised by what it holds, not by its class.

        Raises:
            InputError: `set_timesteps` has not been called.
            UnsupportedError: No exact first-order move exists for this scheduler; the message says
                why and what to use instead.
        """
        from w2sdiff.schedulers import read

        return read(scheduler)

    @classmethod
    def flow(cls, num_inference_steps: int, shift: float = 1.0) -> Levels:
        """Straight-path levels from pure noise (1) to clean (0) for a velocity model.

        Args:
            num_inference_steps: At least 1.
            shift: `shift * s / (1 + (shift - 1) * s)`, as in Stable Diffusion 3. Default: none.
        """
        s = torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float64)
        s = shift * s / (1 + (shift - 1) * s)
        return cls(1 - s, s, torch.ones_like(s), "flow", s[:-1], published="flow")

    def __len__(self) -> int:
        """Number of steps, n. There are n + 1 levels."""
        return len(self.timesteps)

    def convert(self, x: Tensor, prediction: Tensor, *, at: int) -> tuple[Tensor, Tensor]:
        """Split `x` into the (x0, noise) that the network believes in.

        Args:
            x: Latents as the sampler holds them, at level `at`. Shape: [B, ...].
            prediction: The network's output for `x`, same shape.
            at: The level `x` is at, 0 to n. Not the timestep the network was told.

        Returns:
            (x0, noise), in float32 or better.

        Raises:
            UnsupportedError: The prediction does not determine both: the noise at a level without
                signal, or x0 at a level without noise.
        """
        here = self._level(at)
        to_x0 = coefficients(self.prediction, here, (1.0, 0.0))
        to_noise = coefficients(self.prediction, here, (0.0, 1.0))
        x, prediction = _working_precision(x, prediction)
        scale = float(self.scale[at])
        return _combine(x, prediction, to_x0, scale), _combine(x, prediction, to_noise, scale)

    def move(self, x: Tensor, prediction: Tensor, *, at: int, to: int) -> Tensor:
        """Take `x` from level `at` to level `to` along the prediction, down or up.

        Exact for a prediction with fixed (x0, noise); for `to = at + 1` it is the first-order step
        of the sampler itself (DDIM with eta 0, Euler). Clipping or thresholding of x0 is left to
        the sampler's own step, because a clipped move could not be undone.

        Args:
            x: Latents as the sampler holds them, at level `at`. Shape: [B, ...].
            prediction: The network's output for `x`, same shape.
            at: The level `x` is at, 0 to n.
            to: The level wanted, 0 to n.

        Returns:
            Latents at level `to`, in the dtype of `x`; `x` itself where the levels are equal.

        Raises:
            InputError: A level outside 0 to n, or shapes that differ.
            UnsupportedError: As `convert`.
        """
        source, target = self._level(at, landed=at > to), self._level(to, landed=to > at)
        if source == target and self.scale[at] == self.scale[to]:
            return x
        c_x, c_p = coefficients(self.prediction, source, target)
        up, down = float(self.scale[at]), float(self.scale[to])
        wide, prediction = _working_precision(x, prediction)
        return _combine(wide, prediction, (c_x / down, c_p / down), up).to(x.dtype)

    def effective(self, x: Tensor, prediction: Tensor, moved: Tensor, *, at: int) -> Tensor:
        """The prediction that takes `x` where `prediction` takes `moved`, in one step from `at`.

        A method may step from other latents than it was given (W2SD's reflected ones). To first
        order that is a step from the latents it was given with another prediction: this one.

        Args:
            x: Latents at level `at`. Shape: [B, ...].
            prediction: What the step is made with. Same shape.
            moved: The latents the step is made from, at level `at` too. Same shape.
            at: 0 to n - 1.

        Returns:
            Same shape, in float32 or better; `prediction` itself where `moved` is `x`.

        Raises:
            UnsupportedError: As `move`; or the step moves nothing, whatever the prediction.
        """
        if moved is x:
            return prediction
        source, target = self._level(at), self._level(at + 1, landed=True)
        c_x, c_p = coefficients(self.prediction, source, target)
        if c_p == 0:
            raise UnsupportedError(
                f"step {at} of this scheduler ends at the level it starts from, so that no "
                "prediction leads to the moved latents; leave the last step out of the window"
            )
        wide, prediction = _working_precision(x, prediction)
        offset = (moved.to(wide.dtype) - wide) * float(self.scale[at])
        return prediction + offset * (c_x / c_p)

    def scale_model_input(self, x: Tensor, *, at: int) -> Tensor:
        """What the network has to see for latents `x` at level `at`: always unit-variance form."""
        self._level(at)
        scale = float(self.scale[at])
        return x if scale == 1.0 else x * scale

    def reference_inversion(self, x: Tensor, prediction: Tensor, *, at: int) -> Tensor:
        """Move up from level `at` to `at - 1` as the published W2SD and CoRe2 code does.

        That code hands `timesteps[at]` to `DDIMInverseScheduler.step`, which reads it as the
        *target* of the move: coefficients for one level further down are applied to `x`, an error
        of up to two thirds of a step at the end of a run. Published figures contain it. The
        published code for flow models inverts exactly, and so does this.

        Args:
            x: Latents at level `at`. Shape: [B, ...].
            prediction: The network's output for `x`, same shape.
            at: 1 to n - 1: there is no published rule for reflecting the last step.

        Raises:
            UnsupportedError: No code was published for this sampler.
        """
        if self.published == "flow":
            return self.move(x, prediction, at=at, to=at - 1)
        if self.published == "ddim":
            if not 1 <= at < len(self):
                raise InputError(
                    f"the published inversion exists for levels 1 to {len(self) - 1}, got {at}; "
                    "do not reflect the last step, or use inversion='exact'"
                )
            return self.move(x, prediction, at=at + 1, to=at)
        raise UnsupportedError(
            "inversion='reference' reproduces published code, which exists for DDIM without "
            "clip_sample and for flow matching only; use inversion='exact' with this scheduler"
        )

    def _level(self, index: int, *, landed: bool = False) -> tuple[float, float]:
        """(alpha, sigma) of a level: as step `index` assumes it, or where the step before lands."""
        if not 0 <= index <= len(self):
            raise InputError(f"levels run from 0 to {len(self)}, got {index}")
        if landed and self.landing is not None:
            alpha, sigma = self.landing
            return float(alpha[index - 1]), float(sigma[index - 1])
        return float(self.alpha[index]), float(self.sigma[index])


def coefficients(
    prediction: Prediction, source: tuple[float, float], target: tuple[float, float]
) -> tuple[float, float]:
    """(c_x, c_p) such that `c_x * x + c_p * prediction` is `x` moved from source to target.

    Eliminates (x0, noise) from `x = a x0 + s noise`, the definition of the prediction and
    `x' = b x0 + t noise`. Everything that vanishes between equal levels is the one determinant
    `a t - b s`, so that no difference of large tensors is ever formed.

    Args:
        prediction: What the network predicts.
        source: (a, s), the level of x.
        target: (b, t), the level wanted.

    Raises:
        UnsupportedError: The prediction does not determine x0 (or the noise) at the source.
    """
    (a, s), (b, t) = source, target
    determinant = a * t - b * s
    match prediction:
        case "epsilon":
            if a == 0:
                raise UnsupportedError(
                    "this level holds no signal (zero terminal SNR) and the network predicts the "
                    "noise, which leaves x0 undetermined; use a v-prediction model, or start the "
                    "window after the first step"
                )
            return b / a, determinant / a
        case "sample":
            if s == 0 and t != 0:
                raise UnsupportedError(
                    "this level holds no noise and the network predicts x0, which leaves the noise "
                    "undetermined; do not reflect the last step"
                )
            return (t / s, -determinant / s) if s else (0.0, b)
        case "v" | "edm":
            norm = a * a + s * s
            sign = 1 if prediction == "v" else -1
            return (a * b + s * t) / norm, sign * determinant / norm
        case "flow":
            return (b + t) / (a + s), determinant / (a + s)


def _working_precision(x: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32 or better, the prediction without the variance some networks append."""
    if prediction.ndim == x.ndim > 1 and prediction.shape[1] == 2 * x.shape[1]:
        prediction = prediction[:, : x.shape[1]]
    if prediction.shape != x.shape:
        raise InputError(
            f"the prediction has shape {tuple(prediction.shape)}, expected {tuple(x.shape)}"
        )
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.to(dtype), prediction.to(dtype)


def _combine(x: Tensor, prediction: Tensor, c: tuple[float, float], scale: float) -> Tensor:
    return torch.add(x * (c[0] * scale), prediction, alpha=c[1])

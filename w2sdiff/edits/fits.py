"""Whether a noise model was made for what runs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from w2sdiff.core2.noise_model import Host, NoiseModel
from w2sdiff.errors import UnsupportedError

if TYPE_CHECKING:
    from w2sdiff.edits.base import Context


def check_fits(model: NoiseModel, context: Context, prediction: str, channels: int) -> None:
    """Refuse a noise model that was made for something else than what runs.

    Args:
        model: the noise model.
        context: of the running role.
        prediction: what the network predicts.
        channels: of its prediction, without a learned variance.

    Raises:
        UnsupportedError: another network, prediction, number of channels or guidance scale; says
            which.
    """
    host, made = model.host, "This noise model was made for"
    here = Host.of_network(context.pipe.__dict__[context.denoisers[0]])
    if host.denoiser is not None and host.denoiser != here.denoiser:
        raise UnsupportedError(f"{made} {host.denoiser}, the pipeline has {here.denoiser}.")
    for name, value in host.architecture.items():
        if here.architecture.get(name) != value:
            raise UnsupportedError(
                f"{made} another {host.denoiser}: its {name} is {value}, "
                f"the pipeline's {here.architecture.get(name)}."
            )
    if host.prediction is not None and host.prediction != prediction:
        raise UnsupportedError(
            f"{made} networks that predict {host.prediction}, this one predicts {prediction}."
        )
    if model.channels is not None and model.channels != channels:
        raise UnsupportedError(
            f"{made} predictions of {model.channels} channels, the pipeline's have {channels}."
        )
    scale = context.guidance_scale
    if host.guidance_scale is None or scale is None:
        return
    if not math.isclose(host.guidance_scale, scale, rel_tol=1e-6):
        raise UnsupportedError(
            f"{made} guidance at {host.guidance_scale:g}, the pipeline runs at {scale:g}. "
            f"Call it with guidance_scale={host.guidance_scale:g}, or train another one."
        )

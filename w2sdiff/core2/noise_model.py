"""The noise model of CoRe2 behind one interface: what it is given, what it was made for, its file.

A noise model g turns a network's conditional prediction c into an estimate of the guided one. There
are two forms: `CompactNoiseModel`, which `reflect` trains, and `PublishedNoiseModel`, which reads
the authors' checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from w2sdiff.errors import InputError
from w2sdiff.jobs.files import reason

__all__ = ["Given", "Host", "NoiseModel", "load_noise_model", "save_noise_model"]

FORMAT = "w2sdiff.noise_model"
VERSION = 1

# What of a network's config says which network it is, as far as the config has it.
_ARCHITECTURE = (
    *("in_channels", "out_channels", "sample_size", "patch_size", "block_out_channels"),
    *("layers_per_block", "num_layers", "num_single_layers", "attention_head_dim"),
    *("num_attention_heads", "cross_attention_dim", "caption_channels", "joint_attention_dim"),
    *("pooled_projection_dim", "text_embed_dim", "transformer_layers_per_block"),
)


@dataclass(frozen=True)
class Given:
    """What a noise model may look at beside the conditional prediction.

    Attributes:
        x: [B, C, ...] the network's input, alpha x0 + sigma noise; packed latents are [B, N, C].
        alpha: signal part of the level that x is at; a tensor [B] while training.
        sigma: noise part.
        text: [B, T, D] the host's token embeddings of the conditional branch.
        mask: [B, T], 1 for a token and 0 for padding; None: all are tokens.
        negative: [B, T, D] of the unconditional branch.
        pooled: [B, P] the host's pooled embedding, if it has one.
        negative_pooled: [B, P] of the unconditional branch.
        positions: [N, 2] row and column of each token of packed latents.
        step: number of this step, from 0.
        num_steps: steps of the run.
        reference: count steps as the published code does.
    """

    x: Tensor
    alpha: float | Tensor
    sigma: float | Tensor
    text: Tensor | None = None
    mask: Tensor | None = None
    negative: Tensor | None = None
    pooled: Tensor | None = None
    negative_pooled: Tensor | None = None
    positions: Tensor | None = None
    step: int = 0
    num_steps: int = 1
    reference: bool = False

    def map(self, change: Callable[[str, Tensor], Tensor]) -> Given:
        """The same with `change(name, tensor)` for each tensor."""
        tensors = {name: value for name, value in vars(self).items() if torch.is_tensor(value)}
        changed: dict[str, Any] = {name: change(name, value) for name, value in tensors.items()}
        return replace(self, **changed)


@dataclass(frozen=True)
class Host:
    """The network that a noise model was made for; a field that is None is not checked.

    Attributes:
        name: of the model, for people.
        sha256: of its weights.
        denoiser: class of the network.
        architecture: the part of its config that says which network it is.
        channels: of its prediction.
        prediction: what it predicts: "epsilon", "sample", "v", "edm" or "flow".
        guidance_scale: scale of the guidance that is learned.
        evaluation_flops: operations of one evaluation of one branch of one item, at the size that
            was collected.
    """

    name: str | None = None
    sha256: str | None = None
    denoiser: str | None = None
    architecture: Mapping[str, Any] = field(default_factory=dict)
    channels: int | None = None
    prediction: str | None = None
    guidance_scale: float | None = None
    evaluation_flops: float | None = None

    @classmethod
    def of_network(cls, network: Any) -> Host:
        """What can be read off a diffusers network.

        Example:
            >>> from diffusers import UNet2DConditionModel
            >>> Host.of_network(torch.nn.Linear(2, 2)).denoiser
            'Linear'
        """
        network = getattr(network, "_orig_mod", network)
        config = getattr(network, "config", {})
        known = {name: config.get(name) for name in _ARCHITECTURE}
        architecture = {name: value for name, value in known.items() if value is not None}
        return cls(
            denoiser=type(network).__name__,
            architecture=json.loads(json.dumps(architecture)),  # tuples as lists, as a file has it
        )


class NoiseModel(nn.Module):
    """g: from the conditional prediction to an estimate of the guided one.

    Attributes:
        host: the network it was made for.

    Example:
        >>> class Weaker(NoiseModel):
        ...     def forward(self, c, given):
        ...         return 0.9 * c
        >>> c = torch.ones(1, 4, 8, 8)
        >>> bool((Weaker()(c, Given(x=c, alpha=0.8, sigma=0.6)) == 0.9 * c).all())
        True
    """

    form: ClassVar[str] = "other"
    host: Host = Host()

    @property
    def channels(self) -> int | None:
        """Channels of the prediction; None: whatever it is given."""
        return self.host.channels

    def forward(self, c: Tensor, given: Given) -> Tensor:
        """The guided prediction.

        Args:
            c: [B, C, ...] conditional prediction, without a learned variance.
            given: everything else there is to see.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what it predicts")

    def to_config(self) -> dict[str, Any]:
        """Plain data from which the form builds the module again."""
        raise InputError(
            f"{type(self).__name__} has no file form; save one of w2sdiff's own noise models."
        )


def save_noise_model(
    model: NoiseModel, path: Path, *, card: Mapping[str, Any] | None = None
) -> None:
    """Write one safetensors file with the weights, their config and a card.

    Args:
        model: a `CompactNoiseModel` or a `PublishedNoiseModel`.
        path: of the file.
        card: what is worth knowing: data, figures, command.

    Raises:
        InputError: the model has no file form, or the folder cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if path.suffix != ".safetensors":
        raise InputError(f"noise models are written as .safetensors, got {path.name!r}")
    header = {"version": VERSION, "form": model.form, "config": model.to_config()}
    header |= {"host": asdict(model.host), "card": dict(card or {})}
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(weights, temporary, {FORMAT: json.dumps(header, sort_keys=True)})
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise InputError(f"cannot write {path}: {why}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def load_noise_model(path: Path) -> NoiseModel:
    """Read a noise model that `save_noise_model` wrote; it is in evaluation mode, on the CPU.

    Raises:
        InputError: the file is not there, damaged, of another kind, or of a later version.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    header = read_header(path)
    model = _build(header, path)
    try:
        model.load_state_dict(load_file(path), assign=True)
        model.host = Host(**header["host"])
    except (SafetensorError, RuntimeError, OSError, KeyError, TypeError) as error:
        why = (str(error).splitlines() or [repr(error)])[0]
        raise InputError(f"the noise model {path} is damaged: {why}") from error
    return model.eval().requires_grad_(False)


def read_header(path: Path) -> dict[str, Any]:
    """Version, form, config, host and card of a noise model's file, without its weights.

    Raises:
        InputError: as `load_noise_model`.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise InputError(f"No noise model file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(FORMAT)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is no safetensors file, or cut off: {error}") from error
    if text is None:
        raise InputError(
            f"{path} is no noise model of w2sdiff; convert a published checkpoint with "
            "`w2sdiff core2 convert`, train one with `w2sdiff core2 reflect`."
        )
    return parse_header(text, str(path))


def parse_header(text: str, name: str) -> dict[str, Any]:
    """The header of a file, read from its metadata under `FORMAT`.

    Raises:
        InputError: it is damaged, or of a later version.
    """
    try:
        header: dict[str, Any] = json.loads(text)
        version = header["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"what {name} says about itself is damaged: {error!r}") from error
    if version != VERSION:
        raise InputError(
            f"{name} is of version {version!r}, expected {VERSION}; "
            "was it written by a newer w2sdiff?"
        )
    return header


def _build(header: Mapping[str, Any], path: Path) -> NoiseModel:
    from w2sdiff.core2.compact import CompactNoiseModel
    from w2sdiff.core2.published import PublishedNoiseModel

    forms: tuple[Any, ...] = (CompactNoiseModel, PublishedNoiseModel)
    for form in forms:
        if header.get("form") == form.form:
            try:
                with torch.device("meta"):
                    model: NoiseModel = form.from_config(header["config"])
                return model
            except (KeyError, TypeError, AttributeError) as error:
                raise InputError(f"the noise model {path} is damaged: {error!r}") from error
    raise InputError(f"{path} holds a noise model of the unknown form {header.get('form')!r}.")

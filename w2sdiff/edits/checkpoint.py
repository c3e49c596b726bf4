"""`Checkpoint(path or module)`: another denoising network for one role."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2sdiff.edits.base import EDITS, Context, Edit
from w2sdiff.edits.given_to import check_takes
from w2sdiff.edits.hub import is_hub_id, snapshot, variant_of, weights_in
from w2sdiff.edits.placement import Placement, inner, make_room
from w2sdiff.edits.undo import Undo, Value, undone_by
from w2sdiff.errors import InputError, UnsupportedError
from w2sdiff.forms import text, values
from w2sdiff.jobs import digest, file_sha256, weights_sha256

if TYPE_CHECKING:
    import torch
    from torch import nn

# What must agree for one network to stand in for another in the same pipeline, where the config has
# it.
SAME = (
    "in_channels",
    "out_channels",
    "cross_attention_dim",
    "caption_channels",
    "joint_attention_dim",
    "patch_size",
    # What a UNet adds to its timestep: sizes and pooled words (SDXL), labels. One that lacks it
    # would pass over it without a word.
    "addition_embed_type",
    "class_embed_type",
    "projection_class_embeddings_input_dim",
)
_WEIGHTS = "diffusion_pytorch_model*.safetensors"  # an adapter may lie beside them
Others = dict[str, tuple[Placement, "nn.Module"]]


@EDITS.register
@dataclass(frozen=True, eq=False)
class Checkpoint(Edit):
    """checkpoint=PATH       another denoiser: its folder, a pipeline's folder, a hub id, a module.

    Only the denoiser is loaded; text encoders and VAE are the pipeline's. It gets the pipeline's
    dtype and device, is offloaded as the pipeline is, and is let go when `attach` ends.

    Args:
        source: folder of a denoiser (config.json and safetensors) or of a whole pipeline, one
            .safetensors file with the denoiser's own keys, a hub id ("owner/name"), or a module in
            memory. A hub model is looked for in the hub's local cache, once per process; only what
            is not there is downloaded, the denoiser alone. Of a pipeline with two denoisers (Wan
            2.2) a pipeline's folder replaces those it has, and a single network both.
        sha256: expected hash of the weights, checked on loading; None: not checked.

    Cost: no evaluation; the memory of a second denoiser.

    Raises:
        InputError: no such folder, no safetensors in it, or another hash than `sha256`.
        UnsupportedError: while running, if the network's architecture does not fit the pipeline's,
            or it cannot take what the pipeline gives its own: a picture by IP-Adapter, residuals of
            a ControlNet, a guidance scale.

    Example:
        >>> import w2sdiff.shapes
        >>> weak = Checkpoint(w2sdiff.shapes.weak_path("shapes-unet"))
    """

    kind = "checkpoint"
    changes_weights = True
    source: str | Path | nn.Module
    sha256: str | None = None

    def __post_init__(self) -> None:
        """Refuse a path that is not there before anything runs."""
        if self.sha256 is not None:
            text(self.sha256, "The sha256 of a checkpoint")
        if isinstance(self.source, str) and not self.source.strip():
            raise InputError("A checkpoint is a folder, a file or a hub id; got an empty text.")
        if not self._named:
            from torch import nn

            if not isinstance(self.source, nn.Module):
                raise InputError(
                    f"A checkpoint is a path, a hub id or a module; got {self.source!r}."
                )
        elif not is_hub_id(self.source):
            weights_sha256(Path(self.source))  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Checkpoint):
            return NotImplemented
        if self.source is other.source:
            return True
        return self._named and other._named and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity() if self._named else id(self.source))

    @classmethod
    def from_text(cls, argument: str | None, value: str) -> Checkpoint:
        """`checkpoint=PATH`."""
        if argument is not None:
            raise InputError(f"Write checkpoint=PATH; 'checkpoint:{argument}' means nothing.")
        return cls(value)

    @classmethod
    def from_json(cls, data: Any) -> Checkpoint:
        """Inverse of `to_json`: load from where the weights were, if they still are the same."""
        fields = {name: value for name, value in data.items() if name != "edit"}
        path, sha256 = values(fields, ("path", "sha256"), f"the edit {cls.kind!r}")
        return cls(text(path, "The path of a checkpoint"), sha256=sha256)

    def to_json(self) -> dict[str, Any]:
        """Where the weights are, and their hash."""
        if not self._named:
            raise InputError(
                "Checkpoint of a module in memory has no JSON form; save it and give the path."
            )
        return {"edit": self.kind, "path": str(self.source), "sha256": self._hash()}

    def networks(self, context: Context) -> list[nn.Module]:
        """The other network, or networks."""
        return [other for _, other in self._others(context).values()]

    def enter(self, context: Context) -> Callable[[], None]:
        """Put the network in the denoiser's place; the returned function puts the old one back."""
        others, own = self._others(context), _as_called(context)
        # Once per call: the pipeline may be moved, or offloaded, between two of them.
        key = (*self._key(context), "placed")
        perturbed = context.remember_in_call(key, lambda: _placed(context.pipe, own, others))
        # The pipeline's own __setattr__ would rewrite its config: the instance's dictionary is the
        # quiet way in.
        instead = [(context.pipe.__dict__, name, other) for name, (_, other) in others.items()]

        def change(undo: Undo) -> None:
            for name, (_, other) in others.items():
                context.tap(other)
                make_room(context.pipe, own[name], other, undo)
            undo.assign([*perturbed, *instead])

        return undone_by(change)

    def inputs(self, kwargs: dict[str, Any], context: Context) -> dict[str, Any]:
        """Refuse what the network was not made to take."""
        networks = _as_called(context)
        for name, (_, other) in self._others(context).items():
            check_takes(inner(other), inner(networks[name]), kwargs, _called(self.source))
        return kwargs

    @property
    def _named(self) -> bool:
        return isinstance(self.source, str | Path)

    def _identity(self) -> str:
        """What two of them are compared by: what the weights are, or the hub's name for them."""
        return str(self.source) if is_hub_id(self.source) else self._hash()

    def _hash(self) -> str:
        if not is_hub_id(self.source):
            return weights_sha256(Path(self.source))  # type: ignore[arg-type]
        folder = snapshot(str(self.source))
        files = weights_in(folder)  # beside them lies whatever else of the model has been fetched
        return digest({file.relative_to(folder).as_posix(): file_sha256(file) for file in files})

    def _key(self, context: Context) -> tuple[Any, ...]:
        # Not by its own hash, for which weights are read. Again for another dtype: `from_pipe`
        # without one casts the networks it shares.
        source = str(self.source) if self._named else id(self.source)
        dtypes = (network.dtype for network in _as_called(context).values())
        return ("checkpoint", source, self.sha256, *dtypes)

    def _others(self, context: Context) -> Others:
        """The other networks by the names of those they stand in for, loaded once."""
        return context.remember(self._key(context), lambda: self._load_all(context))

    def _load_all(self, context: Context) -> Others:
        if self.sha256 is not None and self._named and self._hash() != self.sha256:
            raise InputError(
                f"The weights at {self.source} are not the ones expected "
                f"(sha256 {self.sha256[:12]}...)."
            )
        others: Others = {}
        for name in context.denoisers:
            called = context.pipe.__dict__[name]
            other = self._load(name, inner(called))
            if other is None:
                continue
            _check_fits(other, called, self.source)
            # A module in memory may stand in for both denoisers of a pipeline.
            known = {id(module): placement for placement, module in others.values()}
            placement = known.get(id(other)) or Placement(other)
            others[name] = placement, other
            if other is self.source and id(other) not in known:
                context.at_end(_as_found(other, placement))
            other.train(called.training)
        if not others:
            wanted = ", ".join(context.denoisers)
            raise InputError(
                f"{_called(self.source)} has none of the pipeline's denoisers ({wanted})."
            )
        return others

    def _load(self, name: str, called: Any) -> nn.Module | None:
        dtype: torch.dtype = called.dtype
        if not isinstance(self.source, str | Path):
            # A module of another dtype is copied, not cast in place: it is the user's.
            same = self.source.dtype == dtype
            return self.source if same else copy.deepcopy(self.source).to(dtype)
        path = snapshot(str(self.source)) if is_hub_id(self.source) else Path(self.source)
        cls = getattr(type(called), "w2sdiff_untapped", type(called))
        if path.is_file():
            return _from_file(cls, called, path).to(dtype)
        if (path / "model_index.json").is_file() or (path / name / "config.json").is_file():
            path = path / name
        if not (path / "config.json").is_file():
            return None
        variants = {variant_of(file.name) for file in path.glob(_WEIGHTS)}
        variant = None if None in variants else min(filter(None, variants), default=None)
        module: nn.Module = cls.from_pretrained(
            path, torch_dtype=dtype, use_safetensors=True, variant=variant, local_files_only=True
        )
        return module


def _from_file(cls: Any, called: Any, path: Path) -> nn.Module:
    from safetensors.torch import load_file

    module: nn.Module = cls.from_config(called.config)
    try:
        module.load_state_dict(load_file(path))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        message = f"The weights in {path} do not fit {cls.__name__}: {reason}"
        raise UnsupportedError(message) from None
    return module


def _check_fits(other: nn.Module, called: nn.Module, source: object) -> None:
    ours, theirs = inner(called).config, inner(other).config
    for key in SAME:
        # A patch of Wan is (1, 2, 2) as built and [1, 2, 2] as read from a config.json.
        if _listed(ours.get(key)) != _listed(theirs.get(key)):
            raise UnsupportedError(
                f"{_called(source)} cannot stand in for the pipeline's denoiser: "
                f"its {key} is {theirs.get(key)}, the pipeline's {ours.get(key)}. "
                "Weak and strong must share latents and text encoders."
            )


def _as_called(context: Context) -> dict[str, Any]:
    """The pipeline's own networks by name, those of this call.

    First asked for before any role speaks, and then another one may be in their place.
    """
    state = context.pipe.__dict__
    own: dict[str, Any] = context.remember_in_call(
        "networks as called", lambda: {name: state[name] for name in context.denoisers}
    )
    return own


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _called(source: object) -> str:
    return str(source) if isinstance(source, str | Path) else type(source).__name__


def _placed(pipe: Any, own: dict[str, Any], others: Others) -> list[Value]:
    """Bring the networks to where the pipeline runs.

    Returns:
        The attention processors that PAG wants in them. Perturbed-attention guidance replaces those
        of the pipeline's own network when the call begins (diffusers 0.42); without them the third
        branch of another one would not be perturbed.
    """
    for name, (placement, _) in others.items():
        placement.follow(pipe, own[name])
    return [
        (_layer(other, layer).__dict__, "processor", processor)
        for name, (_, other) in others.items()
        for layer, processor in getattr(own[name], "attn_processors", {}).items()
        if type(processor).__name__.startswith("PAG")
    ]


def _layer(network: nn.Module, processor: str) -> nn.Module:
    found: nn.Module = inner(network).get_submodule(processor.removesuffix(".processor"))
    return found


def _as_found(module: nn.Module, placement: Placement) -> Callable[[], None]:
    """What gives the user's own module back as it is now: mode, device, no hooks of ours."""
    modes = [(part, part.training) for part in module.modules()]
    home = next(module.parameters()).device

    def restore() -> None:
        placement.end()
        module.to(home)
        for part, training in modes:
            part.training = training

    return restore

"""`Checkpoint(path or module)`: another denoising network for one role."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2sdiff.edits.base import EDITS, Context, Edit
from w2sdiff.errors import InputError, UnsupportedError
from w2sdiff.jobs import weights_sha256

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
)
_WEIGHTS = "diffusion_pytorch_model*.safetensors"  # an adapter may lie beside them


@EDITS.register
@dataclass(frozen=True, eq=False)
class Checkpoint(Edit):
    """checkpoint=PATH       another denoiser: its folder, a pipeline's folder, a hub id, a module.

    Only the denoiser is loaded; text encoders and VAE are the pipeline's. It gets the pipeline's
    dtype and device, is offloaded as the pipeline is, and is let go when `attach` ends.

    Args:
        source: folder of a denoiser (config.json and safetensors) or of a whole pipeline, one
            .safetensors file with the denoiser's own keys, a hub id ("owner/name", downloaded by
            the hub's rules), or a module in memory. Of a pipeline with two denoisers (Wan 2.2) a
            pipeline's folder replaces those it has, and a single network both.
        sha256: expected hash of the weights, checked on loading; None: not checked.

    Cost: no evaluation; the memory of a second denoiser.

    Raises:
        InputError: no such folder, no safetensors in it, or another hash than `sha256`.
        UnsupportedError: while running, if the network's architecture does not fit the pipeline's.

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
        if isinstance(self.source, str | Path) and not _is_hub_id(self.source):
            weights_sha256(Path(self.source))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Checkpoint):
            return NotImplemented
        if self.source is other.source:
            return True
        return self._named and other._named and self._hash() == other._hash()

    def __hash__(self) -> int:
        return hash(self._hash() if self._named else id(self.source))

    @classmethod
    def from_text(cls, argument: str | None, value: str) -> Checkpoint:
        """`checkpoint=PATH`."""
        if argument is not None:
            raise InputError(f"Write checkpoint=PATH; 'checkpoint:{argument}' means nothing.")
        return cls(value)

    @classmethod
    def from_json(cls, data: Any) -> Checkpoint:
        """Inverse of `to_json`: load from where the weights were, if they still are the same."""
        return cls(data["path"], sha256=data["sha256"])

    def to_json(self) -> dict[str, Any]:
        """Where the weights are, and their hash."""
        if not self._named:
            raise InputError(
                "Checkpoint of a module in memory has no JSON form; save it and give the path."
            )
        return {"edit": self.kind, "path": str(self.source), "sha256": self._hash()}

    def enter(self, context: Context) -> Callable[[], None]:
        """Put the network in the denoiser's place; the returned function puts the old one back."""
        # Again for another dtype: `from_pipe` without one casts the networks it shares.
        dtypes = (context.pipe.__dict__[name].dtype for name in context.denoisers)
        key = ("checkpoint", self, *dtypes)
        others: dict[str, nn.Module] = context.remember(key, lambda: self._load_all(context))
        for other in others.values():
            context.tap(other)
        # The pipeline's own __setattr__ would rewrite its config: the instance's dictionary is the
        # quiet way in.
        state = context.pipe.__dict__
        called = {name: state[name] for name in others}
        offloaded = _make_room(context.pipe, called, others)
        pairs = [(called[name], other) for name, other in others.items()]
        perturbed = context.remember_in_call((*key, "perturbed"), lambda: _perturbed(pairs))
        own = [(layer, layer["processor"]) for layer, _ in perturbed]
        for layer, processor in perturbed:
            layer["processor"] = processor
        state.update(others)

        def leave() -> None:
            state.update(called)
            for layer, processor in own:
                layer["processor"] = processor
            for other in offloaded:
                other.to("cpu")

        return leave

    @property
    def _named(self) -> bool:
        return isinstance(self.source, str | Path)

    def _hash(self) -> str:
        if _is_hub_id(self.source):
            return weights_sha256(_from_hub(str(self.source), None))
        return weights_sha256(Path(self.source))  # type: ignore[arg-type]

    def _load_all(self, context: Context) -> dict[str, nn.Module]:
        if self.sha256 is not None and self._named and self._hash() != self.sha256:
            raise InputError(
                f"The weights at {self.source} are not the ones expected "
                f"(sha256 {self.sha256[:12]}...)."
            )
        others = {}
        for name in context.denoisers:
            called = context.pipe.__dict__[name]
            other = self._load(name, _plain(called))
            if other is None:
                continue
            _check_fits(other, called, self.source)
            if other is self.source:
                context.at_end(_as_found(other))
            other.train(called.training)
            _place(context.pipe, called, other)
            others[name] = other
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
        path = _from_hub(str(self.source), name) if _is_hub_id(self.source) else Path(self.source)
        cls = getattr(type(called), "w2sdiff_untapped", type(called))
        if path.is_file():
            return _from_file(cls, called, path).to(dtype)
        if (path / "model_index.json").is_file():
            path = path / name
        if not (path / "config.json").is_file():
            return None
        plain = any(not file.name.split(".")[1:-1] for file in path.glob(_WEIGHTS))
        variant = None if plain else _variant(path)
        module: nn.Module = cls.from_pretrained(
            path, torch_dtype=dtype, use_safetensors=True, variant=variant, local_files_only=True
        )
        return module


def _is_hub_id(source: object) -> bool:
    if not isinstance(source, str) or Path(source).exists():
        return False
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) is not None


def _from_hub(repo: str, denoiser: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    folders = [denoiser] if denoiser else ["unet", "transformer*"]
    files = [f"{folder}/*.{end}" for folder in folders for end in ("json", "safetensors")]
    try:
        return Path(snapshot_download(repo, allow_patterns=["model_index.json", *files]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        message = f"No folder {repo!r} here, and the hub does not give it: {error}."
        raise InputError(message.splitlines()[0]) from None


def _variant(path: Path) -> str | None:
    names = [file.name.split(".") for file in sorted(path.glob(_WEIGHTS))]
    return next((".".join(name[1:-1]) for name in names), None)


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
    ours, theirs = _plain(called).config, _plain(other).config
    for key in SAME:
        # A patch of Wan is (1, 2, 2) as built and [1, 2, 2] as read from a config.json.
        if _listed(ours.get(key)) != _listed(theirs.get(key)):
            raise UnsupportedError(
                f"{_called(source)} cannot stand in for the pipeline's denoiser: "
                f"its {key} is {theirs.get(key)}, the pipeline's {ours.get(key)}. "
                "Weak and strong must share latents and text encoders."
            )


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _called(source: object) -> str:
    return str(source) if isinstance(source, str | Path) else type(source).__name__


def _plain(module: Any) -> Any:
    """The module inside `torch.compile`'s wrapper, or itself."""
    return getattr(module, "_orig_mod", module)


def _place(pipe: Any, called: nn.Module, other: nn.Module) -> None:
    """Bring `other` to where the pipeline runs, in the pipeline's own way of offloading."""
    if _sequential(called):
        from accelerate import cpu_offload

        cpu_offload(other, pipe._execution_device)
    elif not _offload_hooks(pipe, called):
        other.to(pipe._execution_device)


def _perturbed(pairs: list[tuple[Any, nn.Module]]) -> list[tuple[dict[str, Any], Any]]:
    """Layers (their `__dict__`) of the other networks with the processors that PAG wants there.

    Perturbed-attention guidance replaces processors of the pipeline's own network when the call
    begins (diffusers 0.42); without them the third branch of another one would not be perturbed.
    """
    return [
        (_plain(other).get_submodule(name.removesuffix(".processor")).__dict__, processor)
        for called, other in pairs
        for name, processor in getattr(called, "attn_processors", {}).items()
        if type(processor).__name__.startswith("PAG")
    ]


def _as_found(module: nn.Module) -> Callable[[], None]:
    """What gives the user's own module back as it is now: mode, device, no hooks of ours."""
    modes = [(part, part.training) for part in module.modules()]
    home = next(module.parameters()).device
    hooked = hasattr(module, "_hf_hook")

    def restore() -> None:
        if not hooked:
            from accelerate.hooks import remove_hook_from_submodules

            remove_hook_from_submodules(module)
        module.to(home)
        for part, training in modes:
            part.training = training

    return restore


def _make_room(
    pipe: Any, called: dict[str, nn.Module], others: dict[str, nn.Module]
) -> list[nn.Module]:
    """Where one network at a time is on the device: send the one called away, bring the other.

    The one called comes back by itself: accelerate's hook brings it when it is next run.
    """
    moved = []
    for name, other in others.items():
        hooks = _offload_hooks(pipe, called[name])
        for hook in hooks:
            hook.offload()
        if hooks:
            moved.append(other.to(pipe._execution_device))
    return moved


def _offload_hooks(pipe: Any, module: nn.Module) -> list[Any]:
    hooks = getattr(pipe, "_all_hooks", [])
    return [hook for hook in hooks if getattr(hook, "model", None) is module]


def _sequential(module: nn.Module) -> bool:
    """Whether accelerate offloads the module layer by layer: hooks do that by themselves."""
    hooks = [getattr(layer, "_hf_hook", None) for layer in module.modules()]
    parts = [part for hook in hooks for part in getattr(hook, "hooks", [hook])]
    return any(getattr(part, "offload", False) is True for part in parts)

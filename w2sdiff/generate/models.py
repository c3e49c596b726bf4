"""Which model: a name of the embedded world, a folder, or a hub id, and what its weights are."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from w2sdiff.errors import InputError
from w2sdiff.jobs import digest, file_sha256

__all__ = ["DEFAULT_MODEL", "Model", "find_model"]

DEFAULT_MODEL = "shapes-unet"
DENOISERS = ("unet", "transformer", "prior")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_OWN = "{model}/"
# Beside a transformer's weights, and not loaded with them: see `w2sdiff.attention`.
_BESIDE = ("kv_adapter.safetensors", "published.safetensors")
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


@dataclass(frozen=True)
class Model:
    """A stock diffusers folder.

    Attributes:
        name: as the user gave it.
        folder: where it is on this machine.
        variant: which files of the weights, as in ``from_pretrained``; None for the plain ones.
        revision: the revision that was asked for, of a hub id.
    """

    name: str
    folder: Path
    variant: str | None = None
    revision: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Its fields; what it has read since is read again by whoever unpickles it."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @cached_property
    def index(self) -> dict[str, Any]:
        """The contents of ``model_index.json``."""
        path = self.folder / "model_index.json"
        try:
            index = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise InputError(
                f"{self.folder} is no model folder: it has no model_index.json"
            ) from None
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {path}: {error}") from error
        if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
            raise InputError(
                f"{path} names no stock pipeline class; code that comes with a model is never run"
            )
        return index

    @property
    def pipeline(self) -> str:
        """The name of its pipeline class."""
        return str(self.index["_class_name"])

    @cached_property
    def pipeline_class(self) -> type:
        """Its pipeline class, which is one of diffusers' own.

        Raises:
            InputError: this diffusers has no such class.
        """
        import diffusers

        cls = getattr(diffusers, self.pipeline, None)
        if not inspect.isclass(cls) or not issubclass(cls, diffusers.DiffusionPipeline):
            raise InputError(
                f"{self.name} needs the pipeline {self.pipeline!r}, "
                f"which diffusers {diffusers.__version__} does not have"
            )
        return cls

    @cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """What its pipeline can be called with."""
        call: Any = vars(self.pipeline_class).get("__call__") or self.pipeline_class
        return inspect.signature(call).parameters

    @property
    def scheduler(self) -> str:
        """The name of its scheduler class."""
        value = self.index.get("scheduler")
        return str(value[1]) if isinstance(value, list) and len(value) == 2 else "unknown"

    @property
    def commit(self) -> str | None:
        """The commit of a hub model, from where the hub's cache keeps it."""
        found = re.search(r"/snapshots/([0-9a-f]{40})$", self.folder.as_posix())
        return found[1] if found else None

    @cached_property
    def sha256(self) -> str:
        """The identity of the model: a hash over its weights, configurations and vocabularies.

        Neither its name nor its place counts, and neither do files that are not loaded.
        """
        files = {f"{part}/{file.name}": file for part in self._parts() for file in self._used(part)}
        files["model_index.json"] = self.folder / "model_index.json"
        return digest({name: file_sha256(file) for name, file in files.items()})

    def portable(self, data: Any) -> Any:
        """JSON data with the model's own folder written as ``{model}``, to be read anywhere.

        `local` is the inverse.
        """
        return _replaced(data, f"{self.folder}/", _OWN)

    def local(self, data: Any) -> Any:
        """JSON data with ``{model}`` written as the folder it is in here."""
        return _replaced(data, _OWN, f"{self.folder}/")

    @property
    def is_shapes(self) -> bool:
        """Whether it draws the embedded world, so that the oracle can judge its pictures."""
        return self.folder.name.startswith("shapes-")

    @property
    def weak(self) -> Path | None:
        """The weak denoiser that comes with it: ``<denoiser>_weak`` beside the denoiser."""
        folders = (self.folder / f"{name}_weak" for name in DENOISERS if name in self.index)
        return next((folder for folder in folders if folder.is_dir()), None)

    def lora(self, name: str) -> Path | None:
        """A LoRA that comes with it: ``loras/<name>.safetensors``."""
        path = self.folder / "loras" / f"{name}.safetensors"
        return path if path.name == f"{name}.safetensors" and path.is_file() else None

    def noise_model(self, name: str) -> Path | None:
        """A noise model that comes with it: ``noise_models/<name>.safetensors``."""
        path = self.folder / "noise_models" / f"{name}.safetensors"
        return path if path.name == f"{name}.safetensors" and path.is_file() else None

    @property
    def adapter(self) -> Path | None:
        """The trained compression of keys and values in the transformer's folder."""
        path = self.folder / "transformer" / _BESIDE[0]
        return path if path.is_file() else None

    def default(self, argument: str, fallback: Any) -> Any:
        """The value its pipeline gives an argument that the caller leaves out."""
        if self.is_shapes and argument in _SHAPES_DEFAULTS:
            return _SHAPES_DEFAULTS[argument]
        parameter = self.parameters.get(argument)
        value = parameter.default if parameter else None
        return fallback if value in (None, inspect.Parameter.empty) else value

    def check(self) -> None:
        """Refuse what cannot be loaded safely, before anything is loaded.

        Raises:
            InputError: no model index, no safetensors weights, or no file of the variant.
        """
        parts = list(self._parts())
        for part in parts:
            files = [f for f in (self.folder / part).iterdir() if f.name not in _BESIDE]
            pickled = [file.name for file in files if file.suffix in _PICKLES]
            network = (self.folder / part / "config.json").is_file()
            if (network or pickled) and not any(file.suffix == ".safetensors" for file in files):
                only = f", only {pickled[0]}, which could run code when opened" if pickled else ""
                raise InputError(f"{self.folder / part} has no safetensors weights{only}")
        weights = [file for part in parts for file in self._used(part)]
        weights = [file for file in weights if file.suffix == ".safetensors"]
        if not weights:
            raise InputError(f"{self.folder} has no safetensors weights")
        if self.variant and not any(_variant(file) == self.variant for file in weights):
            known = sorted({_variant(file) or "" for file in self.folder.rglob("*.safetensors")})
            names = ", ".join(filter(None, known)) or "none"
            raise InputError(f"{self.name} has no variant {self.variant!r} (it has: {names})")

    def _parts(self) -> Iterator[str]:
        """The components that have a folder, in the order of their names."""
        for name, value in sorted(self.index.items()):
            used = isinstance(value, list) and len(value) == 2 and value[0] is not None
            if used and name == Path(name).name and (self.folder / name).is_dir():
                yield name

    def _used(self, part: str) -> list[Path]:
        """The files of a component that decide what it computes."""
        there = (file for file in (self.folder / part).iterdir() if file.name not in _BESIDE)
        files = sorted(file for file in there if file.is_file())
        weights = [file for file in files if file.suffix == ".safetensors"]
        chosen = [file for file in weights if self.variant and _variant(file) == self.variant]
        chosen = chosen or [file for file in weights if _variant(file) is None]
        return chosen + [file for file in files if file.suffix in (".json", ".txt", ".model")]


_SHAPES_DEFAULTS = {"num_inference_steps": 20, "guidance_scale": 3.0}


def find_model(
    name: str,
    *,
    variant: str | None = None,
    revision: str | None = None,
    download: bool = True,
) -> Model:
    """Find a model by the name of an embedded checkpoint, a folder, or a hub id.

    Args:
        name: a name of `shapes.checkpoint_names()`, a folder, or "owner/name" of a hub model.
        variant: which files of the weights, as in ``from_pretrained``.
        revision: branch, tag or commit of a hub model.
        download: whether what the hub's local cache lacks may be downloaded (safetensors only).

    Raises:
        InputError: there is no such model, or it cannot be loaded safely.

    Example:
        >>> find_model("nowhere/at/all")
        Traceback (most recent call last):
        w2sdiff.errors.InputError: no model folder 'nowhere/at/all' ...
    """
    from w2sdiff import shapes

    if name in shapes.checkpoint_names() and not Path(name).is_dir():
        folder = shapes.checkpoint_path(name)
    elif Path(name).is_dir():
        folder = Path(name).resolve()
    elif _HUB_ID.fullmatch(name):
        folder = _from_hub(name, variant, revision, download)
    elif name.startswith("shapes-") and "/" not in name:
        folder = shapes.checkpoint_path(name)  # raises, and knows the nearest name
    else:
        raise InputError(f"no model folder {name!r} here, and it is no hub id (owner/name) either")
    model = Model(name, folder, variant, revision)
    model.check()
    return model


def _from_hub(name: str, variant: str | None, revision: str | None, download: bool) -> Path:
    from diffusers import DiffusionPipeline

    try:
        folder = DiffusionPipeline.download(
            name,
            revision=revision,
            variant=variant,
            use_safetensors=True,
            local_files_only=not download,
        )
    except Exception as error:  # the hub's client has many ways to say no, of several libraries
        if not download:
            raise InputError(
                f"no folder {name!r} here, nor the whole of that model in the hub's local cache; "
                "allow the download (--download), or give its folder"
            ) from error
        short = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"no folder {name!r} here, and the hub gives no such model: {short}"
        ) from error
    return Path(folder)


def _variant(file: Path) -> str | None:
    """The variant in the name of a weight file: ``x.fp16.safetensors`` and its shards -> fp16."""
    parts = file.name.split(".")
    return re.sub(r"-\d{5}-of-\d{5}$", "", parts[1]) if len(parts) > 2 else None


def _replaced(data: Any, old: str, new: str) -> Any:
    """The same JSON data with `old` at the front of any text replaced by `new`."""
    if isinstance(data, str):
        return new + data.removeprefix(old) if data.startswith(old) else data
    if isinstance(data, Mapping):
        return {key: _replaced(value, old, new) for key, value in data.items()}
    return [_replaced(value, old, new) for value in data] if isinstance(data, list) else data

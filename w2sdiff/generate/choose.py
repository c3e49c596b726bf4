"""From the words of a command line to a method: what was asked for, and what fills the gaps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from w2sdiff.core2.noise_model import read_header
from w2sdiff.edits import (
    Checkpoint,
    CompressedKV,
    Edit,
    Edits,
    Guidance,
    Lora,
    parse_edits,
)
from w2sdiff.edits.compressed_kv import MODEL
from w2sdiff.errors import InputError
from w2sdiff.generate.models import Model
from w2sdiff.generate.settings import LoraFile, Settings
from w2sdiff.methods import METHODS, ROLES, Method, Window

__all__ = [
    "choose_method",
    "find_loras",
    "parse_kv",
    "parse_window",
    "read_options",
    "split_kv",
    "with_loras",
]


def choose_method(
    name: str, options: Mapping[str, Any], model: Model, guidance: float
) -> tuple[Method, list[str]]:
    """The method called `name` with these options, and in words what was filled in.

    Without a pair, W2SD and AutoGuidance use the weak checkpoint that comes with the model; where
    there is none, W2SD uses a guidance pair.

    Args:
        name: a name of `METHODS`.
        options: values for the method's fields; roles as text in the grammar of edits, the window
            as "A:B";
            None stands for not given.
        model: the model it will run on.
        guidance: the scale the pipeline will be called with.

    Raises:
        InputError: unknown method, a field it does not have, or a value it does not take.
    """
    cls = METHODS[name]
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    given = {field: value for field, value in options.items() if value is not None}
    for field in given:
        if field not in fields:
            taken = ", ".join(map(_dashed, sorted(fields & options.keys()))) or "none"
            raise InputError(
                f"the method {name} takes no {_dashed(field)} (of these it takes: {taken})"
            )
    given = read_options(given)
    notes: list[str] = []
    if "noise_model" in fields:
        given["noise_model"], made = _noise_model(given.get("noise_model"), model)
        notes += made
    if name in ("w2sd", "autoguidance") and not {"strong", "weak"} & given.keys():
        pair, note = _default_pair(name, model, guidance)
        given |= pair
        notes.append(note)
    return cls(**given), notes


def read_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a method with what is said in words read: the roles and the window.

    Raises:
        InputError: a word that is none.
    """
    read = dict(options)
    for name, parse in (*((role, parse_edits) for role in ROLES), ("window", parse_window)):
        if isinstance(read.get(name), str):
            read[name] = parse(read[name])
    return read


def _noise_model(given: str | Path | None, model: Model) -> tuple[Path, list[str]]:
    """The file of a noise model: one that comes with the model, by its name, or any other."""
    file = model.noise_model("guidance" if given is None else str(given))
    if file is None and given is not None and Path(given).is_file():
        file = Path(given)
    if file is None:
        known = sorted(path.stem for path in (model.folder / "noise_models").glob("*.safetensors"))
        raise InputError(
            f"no noise model {str(given)!r}: it is neither a file nor one of those that come with "
            f"{model.name} ({', '.join(known) or 'none'}); train one with `w2sdiff core2 reflect`"
            if given is not None
            else f"{model.name} comes with no noise model; give one with --noise-model"
        )
    header = read_header(file)
    trained = header["host"].get("sha256")
    notes = [] if given is not None else ["the noise model that comes with the model"]
    if trained not in (None, model.sha256):
        name = header["host"].get("name")
        notes.append(f"the noise model was made for other weights than these ({name})")
    return file, notes


def parse_window(text: str) -> Window:
    """A window from "A:B", fractions of the run; either may be left out.

    Raises:
        InputError: these are no two fractions in [0, 1].

    Example:
        >>> parse_window("0.2:0.8").stop
        0.8
    """
    start, colon, stop = text.partition(":")
    try:
        if not colon:
            raise ValueError
        return Window(float(start or 0), float(stop or 1))
    except InputError:
        raise
    except ValueError:
        raise InputError(
            f"expected a window such as 0:0.5, fractions of the run, got {text!r}"
        ) from None


def parse_kv(text: str, model: Model) -> CompressedKV:
    """What compresses a whole run, from "R[xR][:KIND][:LAYERS][@ADAPTER]".

    What is not written is the adapter's; without an adapter, `average` in all layers. "model", or
    an adapter of that name, is the one in the folder of the model's transformer.

    Raises:
        InputError: the text is not of that form, or there is no such adapter.

    Example:
        >>> from w2sdiff.generate import find_model
        >>> parse_kv("2x1:uniform:deep", find_model("shapes-dit")).compression
        KVCompression(kind='uniform', ratio=(2, 1), layers='deep', per_layer=())
    """
    return CompressedKV.of_words(*split_kv(text, model.adapter, model.name))


def split_kv(text: str, own: Path | None, name: str) -> tuple[str, list[str], str]:
    """The ratio, the other words and the adapter's place in what compresses a network.

    Args:
        text: as for `parse_kv`.
        own: the adapter in the network's folder, if there is one.
        name: what to call the network.

    Raises:
        InputError: nothing stands behind the @, or "model" and there is no such adapter.
    """
    words, at, place = (f"@{MODEL}" if text == MODEL else text).partition("@")
    if at and not place:
        raise InputError(f"expected an adapter's file after the @, got {text!r}")
    if place == MODEL:
        if own is None:
            raise InputError(
                f"{name} comes with no adapter of compressed keys and values (there is no "
                "kv_adapter.safetensors in its transformer's folder); give a file: R@FILE"
            )
        place = str(own)
    ratio, *others = words.split(":")
    return ratio, others, place


def find_loras(method: Method, given: tuple[LoraFile, ...], model: Model) -> tuple[LoraFile, ...]:
    """The LoRAs to load: those given, and those that the edits name and that come with the model.

    The latter have weight 0 where no edit says otherwise.

    Raises:
        InputError: an edit names a LoRA that is neither.
    """
    loras = {lora.name: lora for lora in given}
    for edit in _edits(method):
        if not isinstance(edit, Lora) or edit.name in loras:
            continue
        file = model.lora(edit.name)
        if file is None:
            names = ", ".join([*loras, *_shipped(model)]) or "none"
            raise InputError(
                f"the LoRA {edit.name!r} is not loaded (there are: {names}); "
                f"give its file with --lora {edit.name}=FILE"
            )
        loras[edit.name] = LoraFile(edit.name, file, 0.0)
    return tuple(loras.values())


def with_loras(settings: Settings, loras: tuple[LoraFile, ...]) -> Settings:
    """The same settings with these LoRAs."""
    return dataclasses.replace(settings, loras=loras)


def with_hashes(method: Method, loras: tuple[LoraFile, ...], model: Model) -> Method:
    """The same method with its files and their hashes in every edit, so that it has a JSON form."""
    files = {lora.name: lora.file for lora in loras}

    def add(edit: Edit) -> Edit:
        if isinstance(edit, CompressedKV) and edit.adapter == "model" and model.adapter is not None:
            return dataclasses.replace(edit, adapter=str(model.adapter))
        if isinstance(edit, Lora) and edit.sha256 is None:
            return Lora.of_file(edit.name, edit.scale, files[edit.name])
        return edit

    return method.with_edits(add)


def _edits(method: Method) -> list[Edit]:
    return [edit for edits in method.roles.values() for edit in edits or Edits()]


def _shipped(model: Model) -> list[str]:
    return sorted(file.stem for file in (model.folder / "loras").glob("*.safetensors"))


def _default_pair(name: str, model: Model, guidance: float) -> tuple[dict[str, Any], str]:
    guided = guidance > 1
    if model.weak is not None:
        weak = Checkpoint(model.weak)
        where = f"the weak checkpoint that comes with the model ({model.weak.name})"
        if name == "w2sd" and guided:
            pair = {"strong": Guidance(1.0), "weak": Guidance(1.0) | weak}
            return pair, f"no pair given: {where}, both at guidance 1 while reflecting"
        return {"weak": weak}, f"no pair given: {where}"
    if name == "w2sd" and guided:
        pair = {"strong": Guidance(guidance), "weak": Guidance(0.0)}
        return pair, f"no pair given: guidance {guidance:g} against guidance 0 (Z-Sampling's pair)"
    raise InputError(
        f"the method {name} needs a pair: {model.name} comes with no weak checkpoint"
        + ("" if name != "w2sd" else ", and with guidance off there is no guidance pair")
        + "; give --weak, for example --weak checkpoint=FOLDER"
    )


def _dashed(field: str) -> str:
    return "--" + field.replace("_", "-")

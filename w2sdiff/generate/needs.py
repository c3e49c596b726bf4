"""What a method's edits need of the model and the settings, told before anything is loaded."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from w2sdiff.edits import ControlScale, Edit, Edits, Experts, IPAdapterScale, NoControl
from w2sdiff.edits.base import Context
from w2sdiff.edits.scales import one_each
from w2sdiff.errors import InputError, UnsupportedError
from w2sdiff.generate.calls import call_parameters, check_call, drawing_class
from w2sdiff.generate.image_prompts import ENCODER, takes_image_prompts
from w2sdiff.generate.models import DENOISERS, Model
from w2sdiff.generate.settings import Settings
from w2sdiff.methods import Method

__all__ = ["check_needs"]


def check_needs(model: Model, settings: Settings, method: Method) -> None:
    """Refuse a method, and settings, that the model could not be drawn with.

    The driver refuses them as well, but only once the model is loaded, and not in the words of the
    command line.

    Raises:
        InputError: something that an edit or the pipeline needs is not there; says what to give.
        UnsupportedError: the pipeline cannot be called with the settings.
    """
    for edit in (edit for edits in method.roles.values() for edit in edits or Edits()):
        _check_edit(edit, model, settings)
    cls = drawing_class(model, from_image=settings.image is not None)
    check_call(cls, settings)
    for prompt in settings.image_prompts[:1]:  # diffusers loads one encoder for all of them
        if prompt.encoder is None and not _has(model, ENCODER):
            raise InputError(
                f"the IP-Adapter {prompt.file} has no image encoder: put its folder {ENCODER} "
                "(its config.json and .safetensors file) beside it"
            )
    if settings.image_strength is not None and "strength" not in call_parameters(cls):
        raise UnsupportedError(
            f"{cls.__name__} takes no image strength; leave out --image-strength"
        )


def _check_edit(edit: Edit, model: Model, settings: Settings) -> None:
    match edit:
        case ControlScale() | NoControl() if not _has_controlnet(model):
            raise InputError(
                f"the edit {edit.kind} needs a pipeline with a ControlNet, and {model.name} is a "
                f"{model.pipeline}: give the folder of one with --model, and the picture that "
                "controls it with --control-image"
            )
        case IPAdapterScale() if not takes_image_prompts(model.pipeline_class):
            raise InputError(
                f"the edit {edit.kind} needs a pipeline that takes an IP-Adapter in a file, which "
                f"{model.pipeline} does not: give another model with --model"
            )
        case IPAdapterScale() if not settings.image_prompts:
            raise InputError(
                f"the edit {edit.kind} needs an IP-Adapter: give its file with --ip-adapter and "
                "the picture it looks at with --ip-adapter-image"
            )
        case IPAdapterScale():
            one_each(edit.scale, len(settings.image_prompts), "IP-Adapters")
        case Experts():
            _check_experts(edit, model)
        case _:
            pass


def _has_controlnet(model: Model) -> bool:
    # A ControlNet-XS may sit inside the denoiser.
    return _has(model, "controlnet") or "ControlNet" in model.pipeline


def _has(model: Model, component: str) -> bool:
    entry = model.index.get(component)
    return isinstance(entry, list) and entry[:1] != [None]


def _check_experts(edit: Experts, model: Model) -> None:
    networks = _skeletons(model.folder, tuple(_denoisers(model)))
    if not networks:
        return
    context = Context(SimpleNamespace(**networks), tuple(networks), tap=lambda _: None)
    try:
        edit.enter(context)()
    except UnsupportedError as error:
        raise InputError(
            f"the edit {edit.kind} needs another model than {model.name}: {error} Give one that "
            "is a mixture of experts with --model"
        ) from error


def _denoisers(model: Model) -> list[tuple[str, str]]:
    """(component, class) of the denoisers whose classes are diffusers' own."""
    import diffusers

    entries = [(name, model.index.get(name)) for name in DENOISERS]
    return [
        (name, entry[1])
        for name, entry in entries
        if isinstance(entry, list) and entry[0] == "diffusers" and hasattr(diffusers, entry[1])
        if (model.folder / name / "config.json").is_file()
    ]


@cache
def _skeletons(folder: Path, denoisers: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """The denoisers by name, made of their configurations, their weights without memory."""
    import diffusers
    from accelerate import init_empty_weights

    made = {}
    with warnings.catch_warnings(), init_empty_weights():
        warnings.simplefilter("ignore")
        for name, cls in denoisers:
            network: Any = getattr(diffusers, cls)
            made[name] = network.from_config(network.load_config(folder / name))
    return made

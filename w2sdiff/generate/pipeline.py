"""Load a stock pipeline with these settings."""

from __future__ import annotations

import warnings
from typing import Any

from w2sdiff.edits import load_lora
from w2sdiff.errors import InputError, UnsupportedError
from w2sdiff.generate.calls import check_call, drawing_class
from w2sdiff.generate.image_prompts import load_image_prompts
from w2sdiff.generate.models import DENOISERS, Model
from w2sdiff.generate.settings import SCHEDULERS, Settings

__all__ = ["load_pipeline", "scheduler_for"]


def load_pipeline(model: Model, settings: Settings) -> Any:
    """The stock pipeline of a model, on its device, with its adapters loaded.

    Only safetensors are read and no code that comes with a model is run. `settings` must be
    resolved (`Settings.on_device`).

    Raises:
        InputError: the files cannot be loaded, or the options do not fit the pipeline.
        UnsupportedError: the pipeline cannot do what was asked.
    """
    import torch

    cls: Any = drawing_class(model, from_image=settings.image is not None)
    check_call(cls, settings)
    options: dict[str, Any] = {_dtype_word(): getattr(torch, settings.dtype)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside diffusers and transformers
            pipe = cls.from_pretrained(
                model.folder,
                use_safetensors=True,
                variant=model.variant,
                local_files_only=True,
                **options,
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise InputError(f"cannot load {model.name}: {_first_line(error)}") from error
    pipe.set_progress_bar_config(disable=True)
    if settings.scheduler:
        pipe.scheduler = scheduler_for(pipe, settings.scheduler)
    _load_loras(pipe, settings)
    load_image_prompts(pipe, settings.image_prompts)
    if settings.attention_backend:
        _set_attention(pipe, settings.attention_backend)
    if settings.tiled:
        _set_tiling(pipe)
    _place(pipe, settings)
    return pipe


def _dtype_word() -> str:
    """What diffusers calls it: the keyword was renamed in 0.40."""
    import diffusers

    major, minor = (int(part) for part in diffusers.__version__.split(".")[:2])
    return "dtype" if (major, minor) >= (0, 40) else "torch_dtype"


def scheduler_for(pipe: Any, name: str) -> Any:
    """The scheduler of this name (of `SCHEDULERS`) with the settings of the pipeline's own.

    Raises:
        InputError: it does not fit the pipeline, or does not take these settings.
    """
    import diffusers

    cls: Any = getattr(diffusers, SCHEDULERS[name])
    flow = "FlowMatch" in type(pipe.scheduler).__name__
    if flow != (name == "flow-euler") and not pipe.scheduler.config.get("use_flow_sigmas", False):
        kind = "a flow" if flow else "no flow"
        raise InputError(
            f"the scheduler {name!r} does not fit: {type(pipe).__name__} is {kind} model "
            f"({type(pipe.scheduler).__name__})"
        )
    try:
        return cls.from_config(pipe.scheduler.config)
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        raise InputError(
            f"the scheduler {name!r} does not take this model's settings: {_first_line(error)}"
        ) from error


def _load_loras(pipe: Any, settings: Settings) -> None:
    if not settings.loras:
        return
    if not hasattr(pipe, "load_lora_weights"):  # PixArt, for one
        for lora in settings.loras:
            load_lora(pipe, lora.file, lora.name, lora.weight)
        return
    for lora in settings.loras:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                folder, file = str(lora.file.parent), lora.file.name
                pipe.load_lora_weights(folder, weight_name=file, adapter_name=lora.name)
        except Exception as error:  # any shape or key error of three libraries
            raise InputError(
                f"the LoRA {lora.file} does not fit {type(pipe).__name__}: {_first_line(error)}"
            ) from error
        if lora.name not in {name for names in pipe.get_list_adapters().values() for name in names}:
            raise InputError(
                f"the file {lora.file} holds no LoRA weights for {type(pipe).__name__}"
            )
    pipe.set_adapters([x.name for x in settings.loras], [x.weight for x in settings.loras])


def _set_attention(pipe: Any, backend: str) -> None:
    from diffusers.models import attention_backend

    for denoiser in _denoisers(pipe):
        processors = getattr(denoiser, "attn_processors", {}).values()
        if not hasattr(denoiser, "set_attention_backend") or not any(
            hasattr(processor, "_attention_backend") for processor in processors
        ):  # diffusers passes over such processors without a word
            raise UnsupportedError(
                f"the attention of {type(denoiser).__name__} has no choice of backends in diffusers"
            )
        try:
            # A model's own backend becomes the whole process's too in diffusers (0.38 to 0.42): the
            # next run, which names none, would draw with it.
            with attention_backend(backend):
                denoiser.set_attention_backend(backend)
        except (ValueError, RuntimeError, ImportError) as error:
            raise InputError(f"attention backend {backend!r}: {_first_line(error)}") from error


def _set_tiling(pipe: Any) -> None:
    vae = getattr(pipe, "vae", None)
    try:
        vae.enable_tiling()  # type: ignore[union-attr]
    except (AttributeError, NotImplementedError):
        what = type(pipe).__name__ if vae is None else type(vae).__name__
        raise UnsupportedError(
            f"{what} cannot decode in tiles; say --no-vae-tiling to decode a picture as a whole"
        ) from None


def _place(pipe: Any, settings: Settings) -> None:
    import torch

    match settings.offload:
        case "none":
            pipe.to(settings.device)
        case "model":
            pipe.enable_model_cpu_offload(device=settings.device)
        case "sequential":
            pipe.enable_sequential_cpu_offload(device=settings.device)
        case "group":
            pipe.enable_group_offload(
                onload_device=torch.device(settings.device),
                offload_device=torch.device("cpu"),
                offload_type="leaf_level",
                use_stream=settings.device.startswith("cuda"),
            )
    if settings.compile:
        for denoiser in _denoisers(pipe):
            denoiser.compile()


def _denoisers(pipe: Any) -> list[Any]:
    found = (getattr(pipe, name, None) for name in DENOISERS)
    return [denoiser for denoiser in found if denoiser is not None]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

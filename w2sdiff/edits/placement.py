"""Where another network runs: on the pipeline's device, offloaded as the pipeline's own is."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from w2sdiff.edits.undo import Undo

if TYPE_CHECKING:
    from torch import nn

# What diffusers (0.38 to 0.42) calls the hooks of group offloading.
_GROUP = "group_offloading"
_GROUP_HOOKS = (_GROUP, "layer_execution_tracker", "lazy_prefetch_group_offloading")


class Placement:
    """How another network is placed; follows a pipeline that is set up anew between two calls.

    A network that is offloaded in a way of its own stays so.
    """

    def __init__(self, other: nn.Module) -> None:
        """`other` is where its owner has put it."""
        self._other = other
        self._own = _sequential(other) or _group(other) is not None
        self._how: object = None
        self._undo = Undo()

    def follow(self, pipe: Any, called: Any) -> None:
        """Bring it to where `called`, a network of the pipeline, runs."""
        how = _how(pipe, inner(called))
        if self._own or how == self._how:
            return
        self.end()
        way, setting = how
        if way in ("sequential", "group"):
            attributes = [(layer, set(layer.__dict__)) for layer in self._other.modules()]
            self._undo.add(partial(_take_hooks_away, attributes))
        if way == "sequential":
            from accelerate import cpu_offload

            cpu_offload(self._other, setting)
        elif way == "group":
            _apply_group(self._other, setting)
        elif way == "whole":
            self._other.to(setting)
        self._how = how

    def end(self) -> None:
        """Take away what offloads it."""
        self._how = None
        self._undo()


def inner(module: Any) -> Any:
    """The module inside `torch.compile`'s wrapper, or itself."""
    return getattr(module, "_orig_mod", module)


def make_room(pipe: Any, called: Any, other: nn.Module, undo: Undo) -> None:
    """Where one network at a time is on the device: send the one called away, bring the other.

    The one called comes back by itself: accelerate's hook brings it when it is next run.
    """
    hooks = _model_hooks(pipe, inner(called))
    for hook in hooks:
        hook.offload()
    if hooks:
        undo.add(partial(_send_away, other))
        other.to(pipe._execution_device)


def _send_away(other: nn.Module) -> None:
    other.to("cpu")


def _how(pipe: Any, called: nn.Module) -> tuple[str, Any]:
    """How the pipeline's own network is placed: a word, and its setting."""
    group = _group(called)
    if group is not None:
        return "group", group
    if _sequential(called):
        return "sequential", pipe._execution_device
    if _model_hooks(pipe, called):
        return "model", None  # see `make_room`
    return "whole", pipe._execution_device


def _model_hooks(pipe: Any, module: nn.Module) -> list[Any]:
    hooks = getattr(pipe, "_all_hooks", [])
    return [hook for hook in hooks if inner(getattr(hook, "model", None)) is module]


def _take_hooks_away(attributes: list[tuple[nn.Module, set[str]]]) -> None:
    """Both libraries' hooks; `attributes` are those that each layer had before."""
    from accelerate.hooks import remove_hook_from_module

    for layer, before in attributes:
        if "_hf_hook" in layer.__dict__:
            remove_hook_from_module(layer)
        registry = layer.__dict__.get("_diffusers_hook")
        if registry is not None:
            for name in _GROUP_HOOKS:
                registry.remove_hook(name, recurse=False)
        for name in {"_diffusers_hook", "forward"} - before:
            layer.__dict__.pop(name, None)


def _sequential(module: nn.Module) -> bool:
    """Whether accelerate offloads the module layer by layer: hooks do that by themselves."""
    hooks = [getattr(layer, "_hf_hook", None) for layer in module.modules()]
    parts = [part for hook in hooks for part in getattr(hook, "hooks", [hook])]
    return any(getattr(part, "offload", False) is True for part in parts)


# ---- group offloading, diffusers' own


def _group(module: nn.Module) -> Any | None:
    """The settings of group offloading, from the first hook that has them."""
    found = (registry.get_hook(_GROUP) for registry in _registries(module))
    return next((hook.config for hook in found if hook is not None), None)


def _registries(module: nn.Module) -> Iterator[Any]:
    for layer in module.modules():
        if "_diffusers_hook" in layer.__dict__:
            yield layer._diffusers_hook


def _apply_group(module: nn.Module, config: Any) -> None:
    """Offload a network by the settings of another one.

    Not to its disk, but to memory: the files there are named by layer, and would be the other's.
    """
    from diffusers.hooks import apply_group_offloading

    taken = inspect.signature(apply_group_offloading).parameters
    given = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    given |= {"use_stream": config.stream is not None, "offload_to_disk_path": None}
    settings = {name: value for name, value in given.items() if name in taken}
    apply_group_offloading(module, **settings)

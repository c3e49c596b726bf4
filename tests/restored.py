"""Whether a pipeline is what it was, part by part."""

from __future__ import annotations

import hashlib

import torch


def fingerprint(pipe):
    """Identities, classes, instance attributes, hooks, LoRA state and weights of everything in a
    pipeline.
    """
    found = {"pipe": (type(pipe), sorted(pipe.__dict__)), "config": dict(pipe.config)}
    for name, part in pipe.components.items():
        found[name] = (id(part), type(part))
        if name == "scheduler":
            found["scheduler dict"] = sorted(part.__dict__)
        if not isinstance(part, torch.nn.Module):
            continue
        for path, module in part.named_modules():
            found[f"{name}.{path}"] = (
                id(module),
                type(module),
                sorted(module.__dict__),
                id(module.__dict__.get("forward")),
                id(module.__dict__.get("_hf_hook")),
                list(module._forward_hooks),
                list(module._forward_pre_hooks),
                lora_state(module),
                module.training,
                settings(module),
            )
        digest = hashlib.sha256()
        for key, value in part.state_dict().items():
            raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(key.encode() + raw.numpy().tobytes())
        found[f"{name} weights"] = digest.hexdigest()
    return found


def settings(module):
    """Numbers, and lists of numbers, that a module keeps beside its weights: scales, counts."""
    plain = {
        name: list(value) if isinstance(value, list | tuple) else value
        for name, value in module.__dict__.items()
        if isinstance(value, int | float | list | tuple)
    }
    lists = {
        name: value
        for name, value in plain.items()
        if not isinstance(value, list) or all(isinstance(one, int | float) for one in value)
    }
    return {name: (value, type(value)) for name, value in lists.items()}


def lora_state(module):
    if not hasattr(module, "set_scale"):
        return None
    return dict(module.scaling), list(module.active_adapters), module.disable_adapters


def compare(before, after):
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert after[key] == value, key

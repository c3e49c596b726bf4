"""Whether a network can take what a pipeline gives its own: pictures, residuals, a guidance scale.

A pipeline is set up for the network that it has. Another one of the same family may lack a part: it
would fail deep inside, or pass over what it is given without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from w2sdiff.errors import UnsupportedError

# Residuals by the names of the denoisers' arguments, and what decides their number and shape.
_OF_UNETS = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)
_OF_TRANSFORMERS = (
    "block_controlnet_hidden_states",
    "controlnet_block_samples",
    "controlnet_single_block_samples",
)
_SHAPES = {
    **dict.fromkeys(_OF_UNETS, ("block_out_channels", "layers_per_block", "down_block_types")),
    **dict.fromkeys(_OF_TRANSFORMERS, ("num_attention_heads", "attention_head_dim")),
}
_SHOWN_TO_UNETS = ("ip_image_proj", "image_proj", "text_image_proj")
_ADDED_TO_UNETS = ("image", "image_hint", "text_image")


def check_takes(network: Any, called: Any, kwargs: Mapping[str, Any], source: str) -> None:
    """Refuse arguments that a network has no part for.

    Args:
        network: the one that stands in.
        called: the pipeline's own.
        kwargs: what the pipeline calls it with.
        source: what to call the network in the message.

    Raises:
        UnsupportedError: says which part is missing, and what to do.
    """
    _check_picture(network, kwargs, source)
    _check_residuals(network, called, kwargs, source)
    _check_scale(network, kwargs, source)


def _check_picture(network: Any, kwargs: Mapping[str, Any], source: str) -> None:
    added = kwargs.get("added_cond_kwargs") or {}
    joint = kwargs.get("joint_attention_kwargs") or {}
    shown = added.get("image_embeds", joint.get("ip_adapter_image_embeds"))
    adapters, config = _adapters(network), network.config
    # As an attribute: diffusers (0.42) notes a loaded IP-Adapter there, and not in the dictionary.
    projects = getattr(config, "encoder_hid_dim_type", None)
    takes_own = projects in _SHOWN_TO_UNETS or config.get("addition_embed_type") in _ADDED_TO_UNETS
    load = (
        "Load it in a pipeline of that network too, load_ip_adapter(...), and give that pipeline's "
        "network: Checkpoint(other_pipe.unet)"
    )
    if shown is not None and not adapters and not takes_own:
        raise UnsupportedError(
            f"The pipeline shows its network a picture, and {source} has no IP-Adapter to see it. "
            f"{load}; or call the pipeline without the picture."
        )
    if isinstance(shown, list | tuple) and adapters and len(shown) != adapters:
        raise UnsupportedError(
            f"The pipeline shows its network {len(shown)} pictures, and {source} has {adapters} "
            f"IP-Adapter{'s' * (adapters > 1)}. {load}."
        )
    if shown is None and projects == "ip_image_proj":
        raise UnsupportedError(
            f"{source} has an IP-Adapter and the pipeline shows it no picture. Call the pipeline "
            "with ip_adapter_image=..., or unload that of the network: unload_ip_adapter()."
        )
    if kwargs.get("encoder_hidden_states_image") is not None and config.get("image_dim", 1) is None:
        raise UnsupportedError(
            f"The pipeline shows its network a picture (encoder_hidden_states_image), and {source} "
            "was not made to see one: it has no image_dim. Give an image-to-video network."
        )


def _adapters(network: Any) -> int:
    """How many IP-Adapters a network has: its projections of the pictures (SD3: of one)."""
    projections = getattr(network, "encoder_hid_proj", None)
    several = getattr(projections, "image_projection_layers", None)
    if several is not None:
        return len(several)
    return int(getattr(network, "image_proj", None) is not None)


def _check_residuals(network: Any, called: Any, kwargs: Mapping[str, Any], source: str) -> None:
    for name, shapes in _SHAPES.items():
        if kwargs.get(name) is None:
            continue
        for key in shapes:
            theirs, ours = _listed(network.config.get(key)), _listed(called.config.get(key))
            if theirs != ours:
                raise UnsupportedError(
                    f"The pipeline's ControlNet or adapter speaks to a network whose {key} is "
                    f"{ours} ({name}), and that of {source} is {theirs}. Add NoControl() to the "
                    "role, or give a network of the same shape."
                )


def _check_scale(network: Any, kwargs: Mapping[str, Any], source: str) -> None:
    config = network.config
    of_unet = kwargs.get("timestep_cond") is not None
    if of_unet and config.get("time_cond_proj_dim", 1) is None:
        missing = "timestep_cond, latent consistency"
    elif kwargs.get("guidance") is not None and config.get("guidance_embeds") is False:
        missing = "guidance_embeds, guidance distillation"
    else:
        return
    raise UnsupportedError(
        f"The pipeline tells its network a guidance scale, and {source} was not made to be told "
        f"one ({missing}). Weak and strong must both be so, or neither."
    )


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value

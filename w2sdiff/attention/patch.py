"""`compress` and `restore`: compressed attention on a stock transformer, and back without a trace.

While a patch is on, three things differ, and nothing else does:

* the layers' `processor` is ours, and keeps the stock one inside. Others set processors too
  (`fuse_qkv_projections`, `set_attn_processor`, libraries), before or afterwards: what `compress`
  would have taken is taken in when the next call starts, what it would have refused is refused
  there, and what is not ours is left alone by `restore`;
* the layers have one more submodule, `kv`, their compressor (where it could not be a submodule, it
  is an ordinary attribute, and its weights follow each call);
* the transformer's class is a subclass with another `__call__`, which notes grid and ratios before
  the call starts.

The note has to be taken somewhere, because attention layers see a flat sequence. Reading it in
`__call__` has three advantages over a hook or an argument of the layers. It works for every host,
also where blocks take no extra arguments. It is outside of what is compiled, in every order of
`compress` and `torch.compile`: FLUX states its grid in a tensor and schedules follow a tensor, and
reading one inside a compiled graph would break it. And, as with the driver's taps, hooks that
accelerate or diffusers put on `forward` do not notice.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from threading import get_ident
from typing import Any

import torch

from w2sdiff.attention.compression import KVCompression
from w2sdiff.attention.hosts.base import SLOT, Call, Plane, Processor, host_of
from w2sdiff.attention.kinds.base import KINDS, KVCompressor
from w2sdiff.attention.ratios import pairs
from w2sdiff.errors import InputError, UnsupportedError

PATCH = "_w2sdiff_kv"


def compress(denoiser: Any, compression: KVCompression) -> Any:
    """Compress keys and values in the self-attention of a transformer, in place.

    Height and width are those of each call: any resolution, square or not, divisible by the ratio
    or not. Text tokens and frames stay whole. A transformer may be compiled, offloaded, cast layer
    by layer or have its projections fused before or afterwards, and LoRAs and gradient
    checkpointing go on working (with checkpointing, go backward through one call before the next
    one of another size).

    Args:
        denoiser: `pipe.transformer` of PixArt-α/Σ, HunyuanDiT, Stable Diffusion 3 and 3.5, FLUX,
            Wan or CogVideoX.
        compression: what to do where.

    Returns:
        The same denoiser.

    Cost: no evaluation; per layer n/N of the attention.

    Raises:
        InputError: compressed already, or layers that the network does not have; at a call, a ratio
            larger than the grid.
        UnsupportedError: another network, or attention processors that are not the stock ones; at
            a call, if they were set since.

    Example:
        >>> from diffusers import DiffusionPipeline
        >>> from w2sdiff import shapes
        >>> pipe = DiffusionPipeline.from_pretrained(shapes.checkpoint_path("shapes-dit"))
        >>> _ = compress(pipe.transformer, KVCompression("average", ratio=2))
        >>> images = pipe("a red circle", num_inference_steps=2, use_resolution_binning=False)
        >>> _ = restore(pipe.transformer)
    """
    Patch(denoiser, compression).enable()
    return denoiser


def restore(denoiser: Any) -> Any:
    """Undo `compress` bit for bit: the processors, classes and keys there were before.

    A processor that somebody has set since is not `compress`'s doing, and stays.

    Raises:
        InputError: the denoiser is not compressed.
    """
    patch = patch_of(denoiser)
    if patch is None:
        raise InputError(
            f"{type(denoiser).__name__} is not compressed; there is nothing to restore."
        )
    patch.disable()
    return denoiser


def patch_of(denoiser: Any) -> Patch | None:
    """What compresses a denoiser now, if anything does."""
    patch: Patch | None = getattr(denoiser, "__dict__", {}).get(PATCH)
    return patch


def grids(denoiser: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Plane, ...]:
    """The grids (frames, height, width) of image tokens that a call of a transformer has.

    Raises:
        UnsupportedError: a network that is not known.
    """
    network: Any = getattr(denoiser, "_orig_mod", denoiser)
    arguments = {**dict(zip(_parameters(network.__class__), args, strict=False)), **kwargs}
    return host_of(network).planes(network.config, arguments)


@dataclass
class _Layer:
    """An attention layer that is compressed: its name, its block's index, and what is ours."""

    attn: Any
    name: str
    index: int
    compressor: KVCompressor
    processor: Processor


class Patch:
    """Compression of one denoiser that can be switched on and off: built once, switched in no time.

    Args:
        denoiser: as for `compress`.
        compression: as for `compress`.

    Attributes:
        compressors: the compressor of every compressed attention layer, by the layer's name.
        depth: number of layers of the network, compressed or not.

    Raises:
        InputError: the denoiser is compressed, or layers that the network does not have.
        UnsupportedError: another network, or attention processors that are not the stock ones.

    Example:
        >>> from diffusers import PixArtTransformer2DModel
        >>> transformer = PixArtTransformer2DModel(num_layers=2, num_attention_heads=2,
        ...     attention_head_dim=8, cross_attention_dim=16, sample_size=8)
        >>> patch = Patch(transformer, KVCompression("conv", ratio=2))
        >>> patch.enable()
        >>> [name for name in transformer.state_dict() if ".kv." in name][0]
        'transformer_blocks.1.attn1.kv.sr.weight'
        >>> patch.disable()
    """

    def __init__(self, denoiser: Any, compression: KVCompression) -> None:
        if not isinstance(compression, KVCompression):
            raise InputError(f"Expected a KVCompression, got {compression!r}.")
        self.denoiser = denoiser
        self.compression = compression
        # torch.compile's wrapper and the module inside; the same one where there is no wrapper.
        self.network = getattr(denoiser, "_orig_mod", denoiser)
        self.host = host_of(self.network)
        self._check_free()
        self.compressors: dict[str, KVCompressor] = {}
        self._call = Call()
        self._layers: list[_Layer] = []
        layers = self.host.layers(self.network)
        self.depth = len(layers)
        self._compressed = frozenset(compression.layers_of(len(layers)))
        names = {id(module): name for name, module in self.network.named_modules()}
        for index in sorted(self._compressed):
            # A layer whose ratio never is more than 1 is left alone.
            if pairs(compression.ratio_of(index)):
                for attn in layers[index]:
                    self._add(attn, names[id(attn)], index)

    def enable(self, *, in_this_thread: bool = False) -> None:
        """Switch on.

        Args:
            in_this_thread: calls by other threads are not noted; they may only get as far as the
                layers when this has been switched off.

        Raises:
            InputError: the denoiser is compressed already.
            UnsupportedError: it has other attention processors since this patch was built.
        """
        self._check_free()
        for layer in self._layers:
            layer.processor = self._standing_in(layer)
        self.thread = get_ident() if in_this_thread else None
        self._swapped: type = type(self.denoiser)
        self._noting: type = _noting(self._swapped)  # type: ignore[arg-type]
        # First and last of all, so that `disable` undoes what an interrupt has left half done.
        for module in (self.denoiser, self.network):
            module.__dict__[PATCH] = self
        self._call.on = True
        # object.__setattr__: torch.compile's wrapper forwards ordinary attributes.
        object.__setattr__(self.denoiser, "__class__", self._noting)
        learned = any(True for c in self.compressors.values() for _ in c.parameters())
        beside = learned and _has_closed_books(self.network)
        for layer in self._layers:
            layer.attn.__dict__["processor"] = layer.processor
            (layer.attn.__dict__ if beside else layer.attn._modules)[SLOT] = layer.compressor

    def disable(self) -> None:
        """Switch off: the denoiser is what it was, with the processors that others set since.

        Raises:
            InputError: something else, an `attach` for example, has wrapped the denoiser since.
        """
        wrapped = type(self.denoiser)
        if wrapped is not self._noting and self._noting in wrapped.__mro__:
            raise InputError(
                f"Something has wrapped this {wrapped.__name__} after it was compressed, an attach "
                "for example; leave that first, then restore."
            )
        for layer in self._layers:
            found = layer.attn.processor
            if isinstance(found, Processor):
                layer.attn.__dict__["processor"] = found.stock
            layer.attn._modules.pop(SLOT, None)
            layer.attn.__dict__.pop(SLOT, None)
        self._call.on, self._call.planes, self._call.ratios = False, (), ()
        if wrapped is self._noting:
            object.__setattr__(self.denoiser, "__class__", self._swapped)
        for module in (self.network, self.denoiser):
            module.__dict__.pop(PATCH, None)

    def note(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call with these arguments starts."""
        if not self._layers:
            return
        for layer in self._layers:
            if layer.attn.processor is not layer.processor:
                layer.processor = self._standing_in(layer, since=True)
                layer.attn.__dict__["processor"] = layer.processor
        arguments = {**dict(zip(_parameters(self.network.__class__), args, strict=False)), **kwargs}
        level = self.host.level(arguments) if self.compression.follows_noise else None
        planes = self.host.planes(self.network.config, arguments)
        ratios = tuple(
            self.compression.at(index, level) if index in self._compressed else (1, 1)
            for index in range(self.depth)
        )
        check = KINDS[self.compression.kind].check_grid
        for ratio in set(ratios):
            for plane in planes:
                check(ratio, plane.height, plane.width)
        self._call.planes, self._call.ratios = planes, ratios

    def _check_free(self) -> None:
        if any(PATCH in module.__dict__ for module in (self.denoiser, self.network)):
            raise InputError(
                f"This {type(self.network).__name__} is compressed already; "
                "restore(denoiser) first, then compress it anew."
            )

    def _add(self, attn: Any, name: str, index: int) -> None:
        compressor = KVCompressor(self.compression, attn.inner_dim, layer=index)
        like = next(attn.parameters())
        dtype = like.dtype if like.dtype.itemsize > 1 else None  # not a storage type (fp8, int8)
        compressor.to(device=_device(attn, like), dtype=dtype).train(attn.training)
        layer = _Layer(attn, name, index, compressor, self.host(attn.processor, index, self._call))
        layer.processor = self._standing_in(layer)
        self._layers.append(layer)
        self.compressors[name] = compressor

    def _standing_in(self, layer: _Layer, *, since: bool = False) -> Processor:
        """Our processor for the one that a layer has now; `since`: set while the patch was on."""
        found = layer.attn.processor
        if isinstance(found, Processor):
            if found.call is self._call and found.index == layer.index:
                return found  # put back by one who found it here, as unfuse_qkv_projections does
            found = found.stock  # of another patch, or of another layer
        kind, stocks = type(found).__name__, ", ".join(self.host.stocks)
        if kind in self.host.stocks:
            known = layer.processor.stock is found  # the same one: what is compiled stays valid
            return layer.processor if known else self.host(found, layer.index, self._call)
        if since:
            raise UnsupportedError(
                f"The attention processor {kind} was set at {layer.name} after this "
                f"{type(self.network).__name__} was compressed, and is not one that can be "
                f"compressed ({stocks}). Set one of these, or restore(denoiser), which leaves "
                f"{kind} in place, to call it uncompressed."
            )
        raise UnsupportedError(
            f"The attention processor {kind} at {layer.name} is not one that can be compressed "
            f"({stocks}). Unload what set it, or set back the default; backends are chosen by "
            "set_attention_backend."
        )


def _device(attn: Any, like: torch.Tensor) -> Any:
    if like.device.type != "meta":
        return like.device
    # Offloaded layer by layer: the weights are elsewhere between calls, the layer runs where its
    # hook says.
    return getattr(getattr(attn.to_k, "_hf_hook", None), "execution_device", None)


def _has_closed_books(network: Any) -> bool:
    """Whether the network is offloaded in groups of blocks, with streams.

    Such a group has listed its weights when it was made, and fails (with a KeyError) on one that
    its blocks got since.
    """
    for module in network.modules():
        registry = module.__dict__.get("_diffusers_hook")
        hook = registry and registry.get_hook("group_offloading")
        if hook is not None and hook.group.stream is not None:
            return True
    return False


@cache
def _noting(cls: Any) -> Any:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        patch = self.__dict__.get(PATCH)
        if patch is not None and patch.thread in (None, get_ident()):
            note(patch, args, kwargs)
        # Not by super(): another thread may have switched the patch off by now.
        return cls.__call__(self, *args, **kwargs)

    # Neither this call nor the note is compiled, while the network's own call is: see the top of
    # this file.
    note = torch.compiler.disable(Patch.note)  # type: ignore[no-untyped-call]
    call = torch.compiler.disable(__call__, recursive=False)  # type: ignore[no-untyped-call]
    # The same name, so that whatever asks for it (saving, hooks, error messages) sees the class it
    # knows.
    names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    noting: Any = type(cls.__name__, (cls,), {**names, "__call__": call})
    return noting


@cache
def _parameters(cls: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(cls.forward).parameters)[1:]

"""What compression has to know about a transformer, and the attention they all share.

A host is a subclass of `Processor` in a file of its own, registered under the name of the
transformer's class. As a class it says where the attention layers are and how the call's arguments
give the grid; as an object it is the attention processor of one layer, in diffusers' sense, and
does what the stock one does with fewer keys and values. The order is always

    project -> compress -> normalise -> rotate -> attend

where the stock processors normalise (SD3.5, FLUX, HunyuanDiT, Wan, CogVideoX) and rotate: a mean of
rotated keys would be shorter than any of them. (The published module has its LayerNorm of q and k
before the compression; none of the hosts has a norm there.) `average` and the sampling kinds
exchange the first two steps, with the same result.

Shapes: hidden states [B, T + N, C], queries, keys and values [B, tokens, heads, C / heads].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from w2sdiff.attention.ratios import Pair
from w2sdiff.errors import InputError, UnsupportedError
from w2sdiff.registry import Registry

HOSTS: Registry[Processor] = Registry("host", "w2sdiff.attention.hosts")

# Where a processor finds its layer's compressor: a submodule of the attention layer, so that it is
# trained, moved, offloaded and saved with it. (The published name of its parameters is attn.sr.*,
# attn.norm.*; here they are attn.kv.sr.*, attn.kv.norm.*, since `norm` may be taken.)
SLOT = "kv"

# Backends of diffusers' dispatcher that take an additive mask, and ones that cannot do this at all.
MASKS = (
    *("native", "_native_cudnn", "_native_efficient", "_native_math"),
    *("xformers", "flex"),
)
PARALLEL = (
    "Context parallelism splits the image between devices, so no device has whole cells; "
    "compressed attention cannot run with it."
)
REFUSED = {"_native_xla": "its kernel needs as many keys as queries"}


class Plane(NamedTuple):
    """Image tokens that lie one after the other: `frames` grids, row by row."""

    frames: int
    height: int
    width: int


@dataclass
class Call:
    """What the layers have to know about the call that runs: noted before it starts.

    Attributes:
        planes: the grids of the image tokens, in their order.
        ratios: (height, width) ratio of every layer of the network.
        on: whether the network is compressed now.
    """

    planes: tuple[Plane, ...] = ()
    ratios: tuple[Pair, ...] = ()
    on: bool = False


class Processor:
    """The attention of one compressed layer; a subclass per host, registered under its class name.

    Args:
        stock: the processor it stands in for.
        index: of the layer in the network, the same for both attentions of a block.
        call: shared by all layers of the network.
    """

    kind: ClassVar[str]  # the transformer's class
    stocks: ClassVar[tuple[str, ...]]  # processors that can be replaced
    one: ClassVar[float] = 1000.0  # the timestep of pure noise
    # diffusers looks for these names when it sets a backend for a whole model.
    _own_backend: Any = None

    def __init__(self, stock: Any = None, index: int = -1, call: Call | None = None) -> None:
        if call is None:
            raise UnsupportedError(
                "Processors of a compressed transformer cannot be made anew by their class, as "
                "loading or unloading an IP-Adapter does; restore(denoiser) first."
            )
        self.stock, self.index, self.call = stock, index, call

    # ---- about the host

    @classmethod
    def layers(cls, denoiser: Any) -> list[list[Any]]:
        """Attention layers of each block, those over image tokens only."""
        raise NotImplementedError

    @classmethod
    def planes(cls, config: Any, arguments: Mapping[str, Any]) -> tuple[Plane, ...]:
        """The grids of image tokens of a call."""
        height, width = arguments["hidden_states"].shape[-2:]
        return (Plane(1, height // config.patch_size, width // config.patch_size),)

    @classmethod
    def level(cls, arguments: Mapping[str, Any]) -> float:
        """Noise level of a call, 1 is pure noise; waits for the device."""
        steps = torch.as_tensor(arguments["timestep"]).detach().float()
        # One per item; or (Wan) per item and token, where frames that are given have level 0.
        steps = steps.amax(dim=-1) if steps.dim() > 1 else steps.flatten()
        low, high = (steps.min().item(), steps.max().item())
        if low != high:
            raise UnsupportedError(
                f"A batch from timestep {low:g} to {high:g}: a ratio that follows the noise level "
                "needs one level per call. Call once per level, or take a constant ratio."
            )
        return high / cls.one

    # ---- diffusers' protocol for backends: what is set here is set on the stock processor too

    @property
    def _attention_backend(self) -> Any:
        return getattr(self.stock, "_attention_backend", self._own_backend)

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        _check_backend(backend, masked=False)
        if hasattr(self.stock, "_attention_backend"):
            self.stock._attention_backend = backend
        else:
            self._own_backend = backend

    @property
    def _parallel_config(self) -> Any:
        return getattr(self.stock, "_parallel_config", None)

    @_parallel_config.setter
    def _parallel_config(self, config: Any) -> None:
        if config is not None:
            raise UnsupportedError(PARALLEL)

    # ---- the attention

    @property
    def off(self) -> bool:
        """Whether this layer runs uncompressed in this call: the stock processor's own work."""
        if not self.call.on:  # set back after restoring, by one who found it here before
            return True
        if not self.call.ratios:
            raise UnsupportedError(
                "Compressed attention learns the grid when the transformer is called; call it, not "
                "its forward, a block or a layer."
            )
        return self.call.ratios[self.index] == (1, 1)

    def text_before(self, hidden: Tensor) -> int:
        """T, number of text tokens that stand before the image tokens in `hidden`."""
        image = sum(frames * height * width for frames, height, width in self.call.planes)
        return int(hidden.shape[1] - image)

    def check_image_only(self, hidden: Tensor) -> None:
        """Refuse hidden states that are not the grid noted when the call started."""
        if self.text_before(hidden) != 0:
            raise UnsupportedError(
                f"Layer {self.index} got {hidden.shape[1]} tokens, but the call started with the "
                f"grids {[tuple(plane) for plane in self.call.planes]}. With gradient "
                "checkpointing, go backward through one call before the next of another size."
            )

    def query_key_value(
        self, attn: Any, hidden: Tensor, text: int = 0, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Projected q [B, T + N, C], compressed k and v [B, T + n, C]; text tokens stay whole.

        bias: [B, N, 1], -10,000 for tokens that no query may see.
        """
        source = hidden if bias is None else self._without(attn, hidden, bias)
        early = getattr(attn, SLOT).commutes
        if early:
            source = self._reduced(attn, source, text)
        q, k, v = _projected(attn, hidden, source)
        if early:
            return q, k, v
        return q, self._reduced(attn, k, text), self._reduced(attn, v, text)

    def rotary(self, attn: Any, cos: Tensor, sin: Tensor, text: int = 0) -> tuple[Tensor, Tensor]:
        """Tables [T + N, D] of the tokens -> [T + n, D] of the compressed keys."""
        ratio = self.call.ratios[self.index]
        places, start = [(cos[:text], sin[:text])], text
        for frames, height, width in self.call.planes:
            stop = start + frames * height * width
            size = (frames, height * width, -1)
            tables = [table[start:stop].reshape(size) for table in (cos, sin)]
            placed = getattr(attn, SLOT).place(*tables, height, width, ratio)
            places.append((placed[0].flatten(0, 1), placed[1].flatten(0, 1)))
            start = stop
        return torch.cat([c for c, _ in places]), torch.cat([s for _, s in places])

    def bias(self, attn: Any, bias: Tensor) -> Tensor:
        """Bias of the tokens [B, N, 1] -> of the compressed keys [B, n, 1]."""
        ratio = self.call.ratios[self.index]
        ((_, height, width),) = self.call.planes
        compressed: Tensor = getattr(attn, SLOT).visible(bias, height, width, ratio)
        return compressed

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """softmax(q k^T / sqrt(d)) v by diffusers' dispatcher, so by the backend the user chose.

        [B, tokens, heads, d] -> [B, tokens, C].
        """
        from diffusers.models.attention_dispatch import (
            _AttentionBackendRegistry,
            dispatch_attention_fn,
        )

        if self._parallel_config is not None:
            raise UnsupportedError(PARALLEL)
        chosen = self._attention_backend
        in_use = _AttentionBackendRegistry.get_active_backend()[0] if chosen is None else chosen
        _check_backend(in_use, masked=mask is not None)
        out: Tensor = dispatch_attention_fn(q, k, v, attn_mask=mask, backend=chosen)
        return out.flatten(2, 3).to(q.dtype)

    def _reduced(self, attn: Any, x: Tensor, text: int) -> Tensor:
        """[B, T + N, C] -> [B, T + n, C], grid by grid."""
        ratio, batch = self.call.ratios[self.index], x.shape[0]
        parts: list[Tensor] = [x[:, :text]] if text else []
        start = text
        for frames, height, width in self.call.planes:
            stop = start + frames * height * width
            plane = x[:, start:stop].reshape(batch * frames, height * width, -1)
            pooled = getattr(attn, SLOT).pool(plane, height, width, ratio)
            parts.append(pooled.reshape(batch, -1, pooled.shape[-1]))
            start = stop
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _without(self, attn: Any, hidden: Tensor, bias: Tensor) -> Tensor:
        ratio = self.call.ratios[self.index]
        ((_, height, width),) = self.call.planes
        result: Tensor = getattr(attn, SLOT).without(hidden, bias, height, width, ratio)
        return result


def host_of(denoiser: object) -> type[Processor]:
    """The host a transformer is.

    Raises:
        InputError: not a module.
        UnsupportedError: a module that is not known, or has nothing to compress.
    """
    if not isinstance(denoiser, torch.nn.Module):
        raise InputError(
            f"compress takes a transformer such as pipe.transformer, got {type(denoiser).__name__}."
        )
    names = [cls.__name__ for cls in type(denoiser).__mro__]
    for name in names:
        if name in HOSTS:
            return HOSTS[name]
    if names[0].startswith("Sana"):
        raise UnsupportedError(
            f"{names[0]} has linear attention, whose cost does not grow with the square of the "
            "tokens: there is nothing to compress."
        )
    raise UnsupportedError(
        f"{names[0]} is not a transformer whose keys and values can be compressed. "
        f"Known: {', '.join(HOSTS)}."
    )


def heads(x: Tensor, attn: Any) -> Tensor:
    """[B, tokens, C] -> [B, tokens, heads, C / heads]."""
    return x.reshape(*x.shape[:-1], attn.heads, -1)


def normed(norm: Any, x: Tensor) -> Tensor:
    """`norm(x)`, where there is one."""
    result: Tensor = x if norm is None else norm(x)
    return result


def _check_backend(backend: Any, *, masked: bool) -> None:
    name = getattr(backend, "value", backend)
    if name in REFUSED:
        raise UnsupportedError(
            f"The attention backend {name!r} cannot run compressed attention: {REFUSED[name]}. "
            "Choose another, for example set_attention_backend('native')."
        )
    if masked and name not in MASKS:
        raise UnsupportedError(
            f"The attention backend {name!r} takes no mask over image tokens, and this call has "
            "one. Choose set_attention_backend('native'), or call without attention_mask."
        )


def _projected(attn: Any, hidden: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Q of `hidden`, k and v of `source`; the latter in one where the host fused them."""
    if not getattr(attn, "fused_projections", False):
        return attn.to_q(hidden), attn.to_k(source), attn.to_v(source)
    fused = attn.to_qkv
    if source is hidden:
        q, k, v = fused(hidden).chunk(3, dim=-1)
    elif type(fused) is torch.nn.Linear and "forward" not in fused.__dict__:
        own = fused.out_features // 3
        b = (None, None) if fused.bias is None else (fused.bias[:own], fused.bias[own:])
        q = F.linear(hidden, fused.weight[:own], b[0])
        k, v = F.linear(source, fused.weight[own:], b[1]).chunk(2, dim=-1)
    else:  # quantised, or hooked (offloading): only its own call may read its weights
        q = fused(hidden).chunk(3, dim=-1)[0]
        _, k, v = fused(source).chunk(3, dim=-1)
    return q, k, v

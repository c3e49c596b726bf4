"""`CompressedKV(...)`: the same network with compressed keys and values for one role."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from w2sdiff.edits.base import EDITS, Context, Edit
from w2sdiff.errors import InputError
from w2sdiff.jobs import weights_sha256

if TYPE_CHECKING:
    from w2sdiff.attention import KVCompression, Patch


@EDITS.register
@dataclass(frozen=True)
class CompressedKV(Edit):
    """compressed-kv=R        self-attention with one key per R x R tokens; no second checkpoint.

    PixArt-Σ (arXiv 2403.04692) compresses keys and values to afford high resolutions: all queries
    and the global range stay, detail is lost. Here the same weights with compression are the weak
    model, and at high resolution its evaluation is the cheaper one. On the command line
    `compressed-kv:KIND:LAYERS=R@ADAPTER`, all but R optional: `compressed-kv:conv:14-27=2`.

    Args:
        compressor: kind of compression, see `w2sdiff.attention.KVCompression`; untrained networks
            bear `average` best.
        ratio: tokens per axis that become one; two numbers (height, width), or a `Schedule`.
        layers: indices, a range, or "all", "deep", "middle", "shallow".
        adapter: file or folder of trained compressors (`save_adapter`); None: as initialised.
        sha256: expected hash of the adapter, checked on loading; None: not checked.

    Cost: no evaluation; the attention of one with n/N of the keys.

    Raises:
        InputError: a kind, ratio or layers that do not exist, or no such adapter.
        UnsupportedError: while running, if the pipeline's denoiser is not a transformer that can be
            compressed, or the adapter is another network's.

    Example:
        >>> from w2sdiff import AutoGuidance, CompressedKV
        >>> AutoGuidance(weak=CompressedKV(ratio=4), scale=1.5).weak
        CompressedKV(compressor='average', ratio=4, layers='all', adapter=None, sha256=None)
    """

    kind = "compressed-kv"
    changes_weights = True  # not the weights, but what they compute: strong and base should agree
    compressor: str = "average"
    ratio: Any = 2
    layers: str | tuple[int, ...] | Iterable[int] = "all"
    adapter: str | Path | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        """Bring every field to its one form, and refuse an adapter that is not there."""
        compression = self._compression(self.ratio, self.layers)
        object.__setattr__(self, "ratio", compression.ratio)
        object.__setattr__(self, "layers", compression.layers)
        if self.adapter is not None:
            object.__setattr__(self, "adapter", str(self.adapter))
            self._hash()

    @property
    def compression(self) -> KVCompression:
        """What is done to the denoiser."""
        return self._compression(self.ratio, self.layers)

    @classmethod
    def from_text(cls, argument: str | None, value: str) -> CompressedKV:
        """`compressed-kv=2`, `compressed-kv:conv:14-27=2x1@adapter.safetensors`."""
        from w2sdiff.attention import KINDS

        ratio, _, adapter = value.partition("@")
        try:
            pair = tuple(int(part) for part in ratio.split("x"))
        except ValueError:
            raise InputError(
                f"Write compressed-kv=R, or R as HEIGHTxWIDTH, with whole numbers; got {ratio!r}."
            ) from None
        parts = [part for part in (argument or "").split(":") if part]
        fields: dict[str, Any] = {"ratio": pair[0] if len(pair) == 1 else pair}
        if parts and (parts[0] in KINDS or len(parts) > 1):
            fields["compressor"] = parts.pop(0)
        if parts:
            fields["layers"] = parts.pop(0)
        if parts:
            raise InputError(
                f"Write compressed-kv:KIND:LAYERS=R; {':'.join(parts)!r} means nothing there."
            )
        return cls(**fields, adapter=adapter or None)

    def to_json(self) -> dict[str, Any]:
        """The fields, and the hash of the adapter."""
        data = self.compression.to_json()
        fields = {"compressor": data["kind"], "ratio": data["ratio"], "layers": data["layers"]}
        if self.adapter is not None:
            fields |= {"adapter": str(self.adapter), "sha256": self._hash()}
        return {"edit": self.kind, **fields}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CompressedKV:
        """Inverse of `to_json`."""
        return cast("CompressedKV", super().from_json(data))

    def enter(self, context: Context) -> Callable[[], None]:
        """Switch the compression on; the returned function switches it off."""
        patches = [self._patch(context, name) for name in context.denoisers]
        entered: list[Patch] = []

        def leave() -> None:
            while entered:
                entered.pop().disable()

        try:
            for patch in patches:
                patch.enable()
                entered.append(patch)
        except BaseException:
            leave()
            raise
        return leave

    def _patch(self, context: Context, name: str) -> Patch:
        denoiser = context.pipe.__dict__[name]
        # The denoiser is part of the key: a Checkpoint edit of the same role puts another in its
        # place. Building takes milliseconds, switching a hundredth of that.
        key = ("compressed-kv", self, id(denoiser))
        patch: Patch = context.remember(key, lambda: self._build(denoiser))
        return patch

    def _build(self, denoiser: Any) -> Patch:
        from w2sdiff.attention import Patch, load_adapter

        patch = Patch(denoiser, self.compression)
        if self.adapter is not None:
            if self.sha256 is not None and self._hash() != self.sha256:
                raise InputError(
                    f"The adapter at {self.adapter} is not the one expected "
                    f"(sha256 {self.sha256[:12]}...)."
                )
            load_adapter(patch, self.adapter)
        return patch

    def _compression(self, ratio: Any, layers: Any) -> KVCompression:
        from w2sdiff.attention import KVCompression

        return KVCompression(self.compressor, ratio, layers)

    def _hash(self) -> str:
        from w2sdiff.attention.adapter import adapter_file

        assert self.adapter is not None
        return weights_sha256(adapter_file(self.adapter))

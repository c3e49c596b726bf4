"""`CompressedKV(...)`: the same network with compressed keys and values for one role."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from w2sdiff.edits.base import EDITS, Context, Edit
from w2sdiff.edits.undo import Undo, undone_by
from w2sdiff.errors import InputError
from w2sdiff.forms import text
from w2sdiff.jobs import weights_sha256

if TYPE_CHECKING:
    from w2sdiff.attention import KVCompression, Patch

MODEL = "model"  # in the place of an adapter's path: the one in the denoiser's own folder


@EDITS.register
@dataclass(frozen=True)
class CompressedKV(Edit):
    """compressed-kv=R        self-attention with one key per R x R tokens; no second checkpoint.

    PixArt-Σ (arXiv 2403.04692) compresses keys and values to afford high resolutions: all queries
    and the global range stay, detail is lost. Here the same weights with compression are the weak
    model, and at high resolution its evaluation is the cheaper one. On the command line
    `compressed-kv:KIND:LAYERS=R@ADAPTER`, all but R optional: `compressed-kv:conv:14-27=2`.
    A slash gives a place its own ratio: `14-27/4` as LAYERS, and as R `0.6/2+0.85/4`, which follows
    the noise level. The adapter `model` is the one in the folder the denoiser was loaded from.

    Args:
        compressor: kind of compression, see `w2sdiff.attention.KVCompression`; untrained networks
            bear `average` best.
        ratio: tokens per axis that become one; two numbers (height, width), or a `Schedule`.
        layers: indices, a range, or "all", "deep", "middle", "shallow".
        adapter: file or folder of trained compressors (`save_adapter`); "model": the one that
            travels with the denoiser, in its folder; None: as initialised.
        sha256: expected hash of the adapter, checked on loading; None: not checked.
        per_layer: ratios of single layers, by index, in place of `ratio`.

    Cost: no evaluation; the attention of one with n/N of the keys.

    Raises:
        InputError: a kind, ratio or layers that do not exist, or no such adapter.
        UnsupportedError: while running, if the pipeline's denoiser is not a transformer that can be
            compressed, or the adapter is another network's.

    Example:
        >>> from w2sdiff import AutoGuidance, CompressedKV
        >>> weak = CompressedKV(ratio=4)
        >>> weak.to_json()
        {'edit': 'compressed-kv', 'compressor': 'average', 'ratio': 4, 'layers': 'all'}
        >>> method = AutoGuidance(weak=weak, scale=1.5)
    """

    kind = "compressed-kv"
    changes_weights = True  # not the weights, but what they compute: strong and base should agree
    compressor: str = "average"
    ratio: Any = 2
    layers: str | tuple[int, ...] | Iterable[int] = "all"
    adapter: str | Path | None = None
    sha256: str | None = None
    per_layer: tuple[tuple[int, Any], ...] | Mapping[int, Any] = ()

    def __post_init__(self) -> None:
        """Bring every field to its one form, and refuse an adapter that is not there."""
        if self.sha256 is not None:
            text(self.sha256, "The sha256 of an adapter")
        compression = self.compression
        for name in ("ratio", "layers", "per_layer"):
            object.__setattr__(self, name, getattr(compression, name))
        if self.adapter is not None:
            if self.adapter == "" or not isinstance(self.adapter, str | Path):
                raise InputError(
                    f"An adapter is a file, a folder or {MODEL!r}; got {self.adapter!r}."
                )
            object.__setattr__(self, "adapter", str(self.adapter))
            if self.adapter != MODEL:
                self._hash()

    @property
    def compression(self) -> KVCompression:
        """What is done to the denoiser."""
        from w2sdiff.attention import KVCompression

        return KVCompression(self.compressor, self.ratio, self.layers, self.per_layer)

    @classmethod
    def from_text(cls, argument: str | None, value: str) -> CompressedKV:
        """`compressed-kv=2`, `compressed-kv:conv:14-27=2x1@adapter.safetensors`.

        Of kind and layers, what is not written is the adapter's; without one, the defaults.
        """
        ratio, at, adapter = value.partition("@")
        if at and not adapter:
            raise InputError(f"Expected an adapter's file after the @, got {value!r}.")
        return cls.of_words(ratio, [] if argument is None else argument.split(":"), adapter)

    @classmethod
    def of_words(
        cls, ratio: str, words: list[str], adapter: str = "", **defaults: str
    ) -> CompressedKV:
        """From a ratio, a kind and layers (both optional), and an adapter's place.

        Args:
            ratio: see `w2sdiff.attention.text`; may be empty where an adapter says it.
            words: at most a kind and layers.
            adapter: file, folder or "model"; empty: none.
            defaults: fields that neither the words nor an adapter say.

        Raises:
            InputError: words that mean nothing, or no such adapter.
        """
        from w2sdiff.attention import KINDS, adapter_compression
        from w2sdiff.attention.text import parse_layers, parse_ratio

        if "" in words:
            raise InputError(
                "Expected a kind of compression, layers, or both between the colons, such as "
                f"conv:14-27; got {':'.join(words)!r}, where one is empty."
            )
        fields: dict[str, Any] = dict(defaults)
        if adapter == MODEL:  # not here to be asked: what the paper did
            fields = {"compressor": "conv", "layers": "deep"}
        elif adapter:
            known = adapter_compression(adapter)
            fields = {"compressor": known.kind, "ratio": known.ratio, "layers": known.layers}
            fields["per_layer"] = known.per_layer
        if ratio or not adapter:
            fields["ratio"] = parse_ratio(ratio)
        words = list(words)
        if words and (words[0] in KINDS or len(words) > 1):
            fields["compressor"] = words.pop(0)
        if words:
            fields["layers"], fields["per_layer"] = parse_layers(words.pop(0))
        if words:
            raise InputError(
                f"Write compressed-kv:KIND:LAYERS=R; {':'.join(words)!r} means nothing there."
            )
        return cls(**fields, adapter=adapter or None)

    def to_json(self) -> dict[str, Any]:
        """The fields, and the hash of the adapter.

        Raises:
            InputError: the adapter is the model's own: which one that is shows when it runs.
        """
        if self.adapter == MODEL:
            raise InputError(
                "The adapter 'model' is found when the denoiser is there, so it has no JSON form; "
                "give its file, kv_adapter.safetensors in the transformer's folder."
            )
        data = self.compression.to_json()  # per_layer is in it where there is one
        fields = {"compressor": data.pop("kind"), **data}
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

        def change(undo: Undo) -> None:
            for patch in patches:
                undo.add(partial(_switch_off, patch))
                patch.enable(in_this_thread=True)

        return undone_by(change)

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
            file = self._file(denoiser)
            if self.sha256 is not None and weights_sha256(file) != self.sha256:
                raise InputError(
                    f"The adapter at {self.adapter} is not the one expected "
                    f"(sha256 {self.sha256[:12]}...)."
                )
            load_adapter(patch, file)
        return patch

    def _file(self, denoiser: Any) -> Path:
        from w2sdiff.attention import find_adapter
        from w2sdiff.attention.adapter import adapter_file

        assert self.adapter is not None
        if self.adapter != MODEL:
            return adapter_file(self.adapter)
        found = find_adapter(denoiser)
        if found is None:
            raise InputError(
                f"No kv_adapter.safetensors travels with this {type(denoiser).__name__}: it was "
                "not loaded from a folder with one. Give the adapter's file."
            )
        return found

    def _hash(self) -> str:
        from w2sdiff.attention.adapter import adapter_file

        assert self.adapter is not None
        return weights_sha256(adapter_file(self.adapter))


def _switch_off(patch: Patch) -> None:
    from w2sdiff.attention.patch import patch_of

    if patch_of(patch.denoiser) is patch:
        patch.disable()

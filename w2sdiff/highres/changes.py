"""What a step of the recipe changes about a PixArt-class network before it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from w2sdiff.attention import KVCompression, Patch, load_adapter
from w2sdiff.errors import InputError, UnsupportedError
from w2sdiff.generate import Model
from w2sdiff.jobs import weights_sha256

__all__ = ["Parts", "Positions", "Setup", "raise_resolution"]

Positions = Literal["interpolated", "kept"]
CLASS = "PixArtTransformer2DModel"


@dataclass
class Parts:
    """A network made ready: the stock pipeline around it, and what compresses it, if anything."""

    pipe: Any
    patch: Patch | None

    @property
    def transformer(self) -> Any:
        """The network that is trained."""
        return self.pipe.transformer


@dataclass(frozen=True)
class Setup:
    """Which network is trained, and what is new about it.

    Attributes:
        model: a PixArt pipeline: text encoder, scheduler and, unless named here, the rest.
        transformer: folder of the network to start from, the last step's, say; None: the model's.
        vae: folder of another VAE with as many latent channels; None: the model's.
        size: pixels per side to be trained at; None: as the network was.
        positions: of a new size. "interpolated": spread over the positions that are known, as
            published (0.5, 1, 2, 4 for 256, 512, 1024, 2K); "kept": the step between neighbours
            stays, and the network meets positions it has never seen.
        compression: of keys and values; None: none.
        adapter: trained compressors to start from; None: as initialised.

    Raises:
        InputError: an adapter without a compression.
    """

    model: Model
    transformer: Path | None = None
    vae: Path | None = None
    size: int | None = None
    positions: Positions = "interpolated"
    compression: KVCompression | None = None
    adapter: Path | None = None

    def __post_init__(self) -> None:
        """Check what belongs together."""
        if self.adapter is not None and self.compression is None:
            raise InputError("An adapter starts a compression: say which (compression=).")
        if self.positions not in ("interpolated", "kept"):
            raise InputError(f"positions is interpolated or kept, got {self.positions!r}")

    def build(self) -> Parts:
        """Load it all in float32, and make the changes.

        Raises:
            InputError: a folder without a network, or a size that does not go into patches.
            UnsupportedError: no PixArt pipeline, or a VAE of other channels.
        """
        from diffusers import AutoencoderKL, DiffusionPipeline, PixArtTransformer2DModel

        found = self.model.index.get("transformer")
        if not isinstance(found, list) or found[1] != CLASS:
            raise UnsupportedError(
                f"The recipe trains pipelines around a {CLASS}; {self.model.name} is a "
                f"{self.model.pipeline}."
            )
        given: dict[str, Any] = {}
        if self.transformer is not None:
            folder = _inner(self.transformer, "transformer")
            given["transformer"] = PixArtTransformer2DModel.from_pretrained(folder)
        if self.vae is not None:
            given["vae"] = AutoencoderKL.from_pretrained(_inner(self.vae, "vae"))
        pipe: Any = DiffusionPipeline.from_pretrained(
            self.model.folder, use_safetensors=True, local_files_only=True, **given
        )
        pipe.set_progress_bar_config(disable=True)
        network, channels = pipe.transformer, pipe.vae.config.latent_channels
        if network.config.in_channels != channels:
            raise UnsupportedError(
                f"The VAE has {channels} latent channels, the transformer takes "
                f"{network.config.in_channels}: another VAE needs as many."
            )
        if self.size is not None:
            latents = self._latents(pipe)
            pipe.register_modules(
                transformer=raise_resolution(network, latents, positions=self.positions)
            )
        return Parts(pipe, self._patch(pipe.transformer))

    def to_json(self) -> dict[str, Any]:
        """What of this decides the trained weights: files by their content."""
        return {
            "model": self.model.sha256,
            "transformer": self.transformer and weights_sha256(self.transformer),
            "vae": self.vae and weights_sha256(self.vae),
            "size": self.size,
            "positions": self.positions,
            "compression": self.compression and self.compression.to_json(),
            "adapter": self.adapter and weights_sha256(self.adapter),
        }

    def _latents(self, pipe: Any) -> int:
        assert self.size is not None
        factor = pipe.vae_scale_factor * pipe.transformer.config.patch_size
        if self.size < 1 or self.size % factor:
            raise InputError(
                f"A picture of {self.size} pixels does not go into patches: expected a multiple of "
                f"{factor}."
            )
        return self.size // int(pipe.vae_scale_factor)

    def _patch(self, network: Any) -> Patch | None:
        if self.compression is None:
            return None
        patch = Patch(network, self.compression)
        patch.enable()
        if self.adapter is not None:
            load_adapter(patch, self.adapter)
        return patch


def raise_resolution(
    transformer: Any, sample_size: int, *, positions: Positions = "interpolated"
) -> Any:
    """The same network for another number of latents per side.

    PixArt-Σ, section 3.3 ("PE interpolation"): position i of a side becomes i / scale, and the
    scale grows as the side does. A stock `PatchEmbed` that meets an input larger than its config
    says does the same by itself; here the config says it, and the new size is the network's own.

    Args:
        transformer: a `PixArtTransformer2DModel`.
        sample_size: latents per side.
        positions: see `Setup`.

    Returns:
        A network with the same weights, of the same type and mode.

    Example:
        >>> from diffusers import PixArtTransformer2DModel
        >>> small = PixArtTransformer2DModel(num_layers=1, num_attention_heads=2,
        ...     attention_head_dim=8, cross_attention_dim=16, sample_size=8, interpolation_scale=1)
        >>> large = raise_resolution(small, 16)
        >>> large.config.interpolation_scale, large.pos_embed.pos_embed.shape[1]
        (2.0, 64)
    """
    old = transformer.config.sample_size
    scale = transformer.pos_embed.interpolation_scale
    if positions == "interpolated":
        scale = scale * sample_size / old
    config = {
        # Without its notes: one of them lists fields to be left to their defaults.
        **{key: value for key, value in transformer.config.items() if not key.startswith("_")},
        "sample_size": sample_size,
        "interpolation_scale": scale,
        # Left to itself it follows the size.
        "use_additional_conditions": transformer.use_additional_conditions,
    }
    raised = type(transformer).from_config(config)
    raised.load_state_dict(transformer.state_dict())
    if raised.dtype != transformer.dtype:  # diffusers warns of every call of `to` with a type
        raised = raised.to(transformer.dtype)
    return raised.train(transformer.training)


def _inner(folder: Path, name: str) -> Path:
    inner = folder / name if (folder / "model_index.json").is_file() else folder
    if not (inner / "config.json").is_file():
        raise InputError(f"Expected the folder of a {name} or of a pipeline, got {folder}.")
    return inner

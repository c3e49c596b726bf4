"""What a network is adapted on: pictures with captions, encoded once and kept beside the training.

Shapes: pixels uint8 [n, H, W, 3]; latents [n, c, h, w]; text states [n, T, D] with mask [n, T].
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from w2sdiff.errors import InputError
from w2sdiff.imaging import open_image, read_metadata
from w2sdiff.jobs import digest, file_sha256

__all__ = ["Batch", "Encoded", "Folder", "Rendered", "Source", "encode"]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_TABLE = "metadata.jsonl"  # Hugging Face's imagefolder: {"file_name": ..., "text": ...} a line
_ABOUT = "about"
_CHUNK = 8
_TILES_FROM = 2048  # pixels per side


class Source(Protocol):
    """Pictures with captions."""

    captions: list[str]

    def pixels(self, start: int, stop: int) -> Any:
        """Pictures start .. stop - 1, uint8 [n, H, W, 3]."""

    def to_json(self) -> dict[str, Any]:
        """What decides the pictures."""


class Folder:
    """Pictures of a folder, cut to a square about their centre and resized.

    A caption is what a picture says about itself, if `w2sdiff generate` drew it (adaptation on
    self-generated pictures); or the text file beside it (`name.txt`); or its line of
    `metadata.jsonl`.

    Args:
        path: the folder.
        size: pixels per side.
        only: names of the files to take; None: every picture there.

    Raises:
        InputError: no pictures there, or one without a caption.
    """

    def __init__(self, path: Path, size: int, *, only: Collection[str] | None = None) -> None:
        if not path.is_dir():
            raise InputError(f"Expected a folder of pictures, there is none at {path}.")
        table = _table(path / _TABLE)
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
        files = [file for file in files if only is None or file.name in only]
        found = [(file, _caption(file, table)) for file in files]
        # Sheets of a comparison say what they are, and are no pictures.
        found = [(file, caption) for file, caption in found if caption is not None]
        if not found:
            raise InputError(f"No pictures ({', '.join(_SUFFIXES)}) with captions in {path}.")
        self.files = [file for file, _ in found]
        self.captions = [caption or "" for _, caption in found]
        self.size = size

    def pixels(self, start: int, stop: int) -> Any:
        """Read them."""
        import numpy as np

        return np.stack([_square(file, self.size) for file in self.files[start:stop]])

    def to_json(self) -> dict[str, Any]:
        """Content and captions of the files, in their order."""
        pairs = zip(self.files, self.captions, strict=True)
        return {
            "source": "folder",
            "size": self.size,
            "pictures": digest([[file_sha256(file), caption] for file, caption in pairs]),
        }


class Rendered:
    """Pictures of the embedded world, drawn by its renderer at any size.

    Args:
        count: how many.
        size: pixels per side.
        seed: of the endless set whose first pictures they are.
    """

    def __init__(self, count: int, size: int, *, seed: int = 0) -> None:
        if count < 1:
            raise InputError(f"Expected at least one picture, got {count}.")
        self.count, self.size, self.seed = count, size, seed
        starts = range(0, count, _CHUNK * 32)
        self.captions = [
            caption
            for start in starts
            for caption in _world(seed, start, min(start + starts.step, count), 64)[0]
        ]

    def pixels(self, start: int, stop: int) -> Any:
        """Draw them."""
        return _world(self.seed, start, min(stop, self.count), self.size)[1]

    def to_json(self) -> dict[str, Any]:
        """Number, size and seed."""
        return {"source": "shapes", "count": self.count, "size": self.size, "seed": self.seed}


@dataclass(frozen=True)
class Batch:
    """Items as a network takes them."""

    latents: Tensor
    states: Tensor
    mask: Tensor


class Encoded:
    """Encoded pictures and captions in a folder; read item by item, never as a whole."""

    def __init__(self, folder: Path) -> None:
        self._latents = _opened(folder / "latents.safetensors")
        self._texts = _opened(folder / "texts.safetensors")
        self._caption_of: list[int] = self._latents.get_tensor("caption_of").tolist()
        self._offsets: list[int] = self._texts.get_tensor("offsets").tolist()

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._caption_of)

    def batch(self, items: Sequence[int], dropped: Sequence[bool]) -> Batch:
        """Items by number; those that are dropped have the empty caption, number 0."""
        slices = self._latents.get_slice("latents"), self._texts.get_slice("states")
        latents = torch.cat([slices[0][i : i + 1] for i in items]).float()
        numbers = [
            0 if drop else self._caption_of[i] for i, drop in zip(items, dropped, strict=True)
        ]
        texts = [slices[1][self._offsets[n] : self._offsets[n + 1]].float() for n in numbers]
        lengths = torch.tensor([len(text) for text in texts])
        states = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
        mask = (torch.arange(states.shape[1])[None] < lengths[:, None]).long()
        return Batch(latents, states, mask)


def encode(
    source: Source,
    pipe: Any,
    folder: Path,
    about: dict[str, Any],
    *,
    device: torch.device | str = "cpu",
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Encoded:
    """Encode pictures and captions into a folder, or find them there.

    Args:
        source: the pictures.
        pipe: a PixArt pipeline: its VAE and text encoder.
        folder: gets `latents.safetensors` and `texts.safetensors`.
        about: what decides the encoders; with the source it decides whether what is there is right.
        device: where it is done.
        on_progress: told how many pictures are encoded, and of how many.
    """
    key = {"about": digest({**about, "source": source.to_json()})}
    files = [folder / f"{name}.safetensors" for name in ("latents", "texts")]
    if all(_key(file) == key for file in files):
        return Encoded(folder)
    folder.mkdir(parents=True, exist_ok=True)
    captions = list(dict.fromkeys(["", *source.captions]))
    numbers = {caption: number for number, caption in enumerate(captions)}
    texts = [states for caption in captions for states in _encoded_text(pipe, caption, device)]
    offsets = torch.tensor([0, *(len(text) for text in texts)]).cumsum(0)
    _save(files[1], {"states": torch.cat(texts), "offsets": offsets}, key)
    latents = torch.cat(list(_encoded_pictures(source, pipe, device, on_progress)))
    caption_of = torch.tensor([numbers[caption] for caption in source.captions])
    _save(files[0], {"latents": latents, "caption_of": caption_of}, key)
    return Encoded(folder)


@torch.no_grad()
def _encoded_text(pipe: Any, caption: str, device: Any) -> Iterator[Tensor]:
    """[T, D], without padding, as the pipeline itself encodes a prompt."""
    pipe.text_encoder.to(device)
    longest = getattr(pipe.tokenizer, "model_max_length", 300)
    states, mask, *_ = pipe.encode_prompt(
        caption,
        do_classifier_free_guidance=False,
        device=device,
        clean_caption=True,
        max_sequence_length=min(300, longest),
    )
    yield states[0, : int(mask[0].sum())].cpu()


@torch.no_grad()
def _encoded_pictures(
    source: Source, pipe: Any, device: Any, on_progress: Callable[[int, int], None]
) -> Iterator[Tensor]:
    vae, total = pipe.vae.to(device), len(source.captions)
    for start in range(0, total, _CHUNK):
        pixels = torch.from_numpy(source.pixels(start, min(start + _CHUNK, total)))
        if max(pixels.shape[1:3]) >= _TILES_FROM:
            vae.enable_tiling()
        scaled = pixels.to(device).permute(0, 3, 1, 2).to(vae.dtype) / 127.5 - 1
        mode = vae.encode(scaled).latent_dist.mode()
        # PixArt has no shift: its pipelines divide by the scale, and nothing else.
        yield (mode * vae.config.scaling_factor).half().cpu()
        on_progress(min(start + _CHUNK, total), total)


def _save(file: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    from safetensors.torch import save_file

    part = file.with_name(f".{file.name}.tmp")
    save_file({n: t.contiguous() for n, t in tensors.items()}, part, metadata=about)
    part.replace(file)


def _opened(file: Path) -> Any:
    from safetensors import safe_open

    return safe_open(file, framework="pt")


def _key(file: Path) -> dict[str, str] | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return opened.metadata()  # type: ignore[no-any-return]
    except (OSError, SafetensorError):
        return None


def _world(seed: int, start: int, stop: int, size: int) -> tuple[list[str], Any]:
    from w2sdiff.shapes import batch

    return batch(seed, stop - start, start=start, side=size)


def _table(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    table = {}
    for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            table[str(row["file_name"])] = str(row["text"])
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f'{file}, line {number}: expected {{"file_name": ..., "text": ...}}, '
                f"got {line[:60]!r}."
            ) from None
    return table


def _caption(file: Path, table: dict[str, str]) -> str | None:
    """The caption of a picture; None for what is no picture, a sheet of a comparison."""
    text = file.with_suffix(".txt")
    if text.is_file():
        return text.read_text("utf-8").strip()
    if file.name in table:
        return table[file.name]
    try:
        said = read_metadata(file)
    except InputError:
        raise InputError(
            f"{file} has no caption: expected a text file {text.name} beside it, a line in "
            f"{_TABLE}, or a picture of w2sdiff generate."
        ) from None
    return None if "grid" in said else str(said["prompt"])


def _square(file: Path, size: int) -> Any:
    import numpy as np
    from PIL import Image, ImageOps

    image = ImageOps.fit(open_image(file), (size, size), Image.Resampling.LANCZOS)
    return np.asarray(image.convert("RGB"))

"""Golden checks of the scorers: does what is installed here still give the known results?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from w2sdiff.errors import InputError
from w2sdiff.scorers import golden
from w2sdiff.scorers.base import SCORERS, scorer_from_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Check", "verify"]

_LIBRARIES = (
    *("torch", "transformers", "open_clip_torch", "tokenizers", "safetensors", "accelerate"),
    *("huggingface_hub", "pillow", "numpy", "scipy"),
)
_SENTENCE = ("a photo of a cat", [49406, 320, 1125, 539, 320, 2368, 49407])
_CLOSE = 2e-4  # of numbers of order 1 that took another way through float32


@dataclass(frozen=True)
class Check:
    """One check: its name, how it went, and in words what was found."""

    name: str
    status: Literal["ok", "failed", "not installed"]
    detail: str


class _AbsentError(Exception):
    """What the check needs is not on this machine."""


class _WrongError(Exception):
    """Another result than the known one."""


def verify(data: Path | None = None) -> Iterator[Check]:
    """Run all golden checks, one after the other; nothing is downloaded.

    Libraries are checked against the versions this package asks for; the preprocessing against
    what torchvision makes of stored pictures; the tokenizer against known ids; small copies of
    the networks that are read into stock classes against forward passes in plain torch; LAION's
    heads, where they are here, against the ten embeddings published with their scores; the
    embedded judge and the oracle on pictures of their world. Last come the scorers whose weights
    are on this machine.

    Args:
        data: a folder with LAION's heads: the published `.pth`, or `laion_v*_vit_l_14.jsonl`.

    Example:
        >>> from itertools import islice
        >>> [check.status for check in islice(verify(), 1)]
        ['ok']
    """
    for name in _LIBRARIES:
        yield _run(f"version of {name}", _version, name)
    for name in ("wide", "tall", "alpha"):
        yield _run(f"preprocessing, {name} picture", _preprocessing, name)
    yield _run("tokenizer of CLIP", _tokenizer)
    for kind in golden.numbers():
        yield _run(f"small {kind}", _small_model, kind)
    for head in ("v1", "v2"):
        yield _run(f"aesthetic head {head}", _head, head, data)
    yield _run("oracle of shapes", _judge, "shapes")
    yield _run("shapes-clip", _judge, "clipscore:model=shapes-clip")
    for kind in SCORERS:
        yield _run(f"scorer {kind}", _ready, kind)


def _run(name: str, check: Callable[..., str], *arguments: Any) -> Check:
    try:
        return Check(name, "ok", check(*arguments))
    except _AbsentError as absent:
        return Check(name, "not installed", str(absent))
    except _WrongError as wrong:
        return Check(name, "failed", str(wrong))
    # A broken library may fail in any way; that is what this command is to find out.
    except Exception as error:
        return Check(name, "failed", f"{type(error).__name__}: {error}")


def _version(name: str) -> str:
    from packaging.requirements import Requirement

    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError as error:
        raise _AbsentError(f"{name} is not installed") from error
    for text in metadata.requires("w2sdiff") or ():
        wanted = Requirement(text)
        if wanted.name.replace("-", "_").lower() == name and not wanted.marker:
            _hold(version in wanted.specifier, f"{version}, but {wanted} is asked for")
    return version


def _preprocessing(name: str) -> str:
    from PIL import Image

    from w2sdiff.scorers.preprocess import resize_crop, resize_pad

    known = golden.arrays()
    image = Image.fromarray(known[f"{name}.picture"])
    cropped = resize_crop(image, known[f"{name}.crop"].shape[-1]).numpy()
    worst = 255 * _far(cropped, known[f"{name}.crop"] / 255)
    for antialias in (False, True):
        expected = known[f"{name}.pad.{antialias}"]
        padded = resize_pad(image, expected.shape[-1], antialias=antialias).numpy()
        worst = max(worst, 255 * _far(padded, expected))
    _hold(worst < 0.5, f"off by up to {worst:.2g} grey levels")
    return f"within {worst:.1g} grey levels of torchvision: crop, and pad in both recipes"


def _tokenizer() -> str:
    from w2sdiff.scorers.text import clip_tokeniser

    sentence, known = _SENTENCE
    words = clip_tokeniser(77)
    ids = words.split(sentence)
    _hold(ids == known, f"{sentence!r}: expected {known}, got {ids}")
    cut = words.encode(["red " * 100, "blue " * 100])
    _hold(bool((cut[:, -1] == known[-1]).all()), "a long prompt loses its end mark")
    _hold(bool((cut[0] != cut[1]).any()), "two long prompts are the same")
    return "known ids; the end mark is kept when a prompt is cut"


def _small_model(kind: str) -> str:
    known = golden.numbers()[kind]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        golden.write_model(kind, folder)
        scorer = scorer_from_json({"scorer": kind, **_sources(kind, folder)})
        images = [golden.picture(number) for number in range(len(known["prompts"]))]
        scores = scorer.score(images, known["prompts"])
        scorer.close()
    worst = _far(scores, known["expected"])
    _hold(worst < _CLOSE, f"expected {known['expected']}, got {scores.tolist()}")
    return f"within {worst:.1g} of its forward pass in plain torch"


def _sources(kind: str, folder: Path) -> dict[str, Any]:
    weights = {"weights": str(folder / "model.safetensors")}
    match kind:
        case "imagereward":
            return weights | {"tokenizer": str(folder)}
        case "hpsv3":
            return weights | {"base": str(folder), "dtype": "float32"}
        case _:
            return weights


def _head(name: str, data: Path | None) -> str:
    from w2sdiff.scorers.aesthetic import Aesthetic, load_head

    form = "affine" if name == "v2" else "linear"
    places = [data / f"laion_{name}_{form}_vit_l_14.jsonl"] if data else []
    if name == "v2":
        places += [data / "sac+logos+ava1-l14-linearMSE.pth"] if data else []
        with suppress(InputError):  # it was never fetched
            places.append(Aesthetic()._head_file)
    if not (found := [place for place in places if place.is_file()]):
        raise _AbsentError("the head is not here; --data names its folder")
    known = golden.arrays()
    embeddings = known["laion.embeddings"].astype(float)
    for file in found:
        weight, bias = load_head(file)
        worst = _far(embeddings @ weight.numpy() + bias, known[f"laion.{name}"])
        _hold(worst < 1e-4, f"{file.name} is off by {worst:.2g} on the ten published embeddings")
    return f"ten published embeddings, by {', '.join(file.name for file in found)}"


def _judge(text: str) -> str:
    """The true caption of a rendered picture must score above an altered one."""
    from PIL import Image

    from w2sdiff.scorers.base import parse_scorer
    from w2sdiff.shapes.render import Object, Scene, render

    scorer = parse_scorer(text)
    try:
        scorer.fingerprint()
    except InputError as error:
        raise _AbsentError(str(error)) from error
    scene = Scene(
        (
            Object("circle", "red", x=18, y=32, size=18),
            Object("square", "blue", x=46, y=32, size=18),
        )
    )
    image = Image.fromarray(render(scene)[0])
    captions = (
        *("a red circle left of a blue square", "a green circle left of a blue square"),
        *("a red circle left of a blue triangle", "four red circles"),
    )
    scores = scorer.score([image] * len(captions), captions)
    wrong = [c for c, s in zip(captions[1:], scores[1:], strict=True) if s >= scores[0]]
    _hold(not wrong, f"{wrong[:1]} scores as high as {captions[0]!r}")
    return f"the true caption scores above {len(captions) - 1} altered ones"


def _ready(kind: str) -> str:
    """Everything its scores depend on is here, and hashed."""
    try:
        return f"ready, recipe {scorer_from_json({'scorer': kind}).recipe()[:12]}"
    except InputError as error:
        raise _AbsentError(str(error)) from error


def _far(one: NDArray[np.floating[Any]], other: Any) -> float:
    """The largest difference; infinite where there is no number."""
    import numpy as np

    far = np.abs(np.asarray(one, float) - np.asarray(other, float)).max()
    return float(far) if np.isfinite(far) else float("inf")


def _hold(condition: bool, otherwise: str) -> None:
    if not condition:
        raise _WrongError(otherwise)

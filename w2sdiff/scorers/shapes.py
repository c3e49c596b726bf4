"""The oracle of the embedded world as a scorer: did the picture obey its caption?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2sdiff import shapes
from w2sdiff.errors import InputError
from w2sdiff.jobs import file_sha256
from w2sdiff.scorers.base import SCORERS, Scorer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

__all__ = ["Shapes"]

_CODE = ("captions.py", "look.py", "measure.py", "oracle.py", "render.py")


@SCORERS.register
@dataclass(frozen=True)
class Shapes(Scorer):
    """1 if a picture of the embedded world obeys its caption, 0 if not; read off, not learned.

    See `w2sdiff.shapes.judge`: exactly the demanded objects, each recognised, in the demanded
    relation, and nothing else in the picture.

    Raises (from `score`):
        InputError: a prompt is no caption of the world, or a picture has not the world's size.

    Example:
        >>> from PIL import Image
        >>> from w2sdiff.shapes.render import Object, Scene, render
        >>> scene = Scene((Object("circle", "red", x=32, y=32, size=20),))
        >>> image = Image.fromarray(render(scene)[0])
        >>> Shapes().score([image, image], ["a red circle", "a blue circle"]).tolist()
        [1.0, 0.0]
    """

    kind = "shapes"
    group = "exact"
    expected = (0.0, 1.0)

    def fingerprint(self) -> dict[str, Any]:
        """The oracle has no weights; what decides its verdicts is its code, so that is hashed."""
        folder = Path(shapes.__file__).parent
        return {
            "scorer": self.kind,
            "weights": {name: file_sha256(folder / name) for name in _CODE},
            "preprocessing": "8-bit RGB, 64x64",
            "dtype": "float32",
            "formula": "1 if obeyed, else 0",
        }

    def score(
        self, images: Sequence[Image], prompts: Sequence[str] | None = None
    ) -> NDArray[np.float32]:
        """1 or 0 for each picture, float32 [n]."""
        import numpy as np

        from w2sdiff.scorers.preprocess import rgb
        from w2sdiff.shapes.render import IMAGE_SIZE

        captions = self._check_prompts(images, prompts)
        for image, caption in zip(images, captions, strict=True):
            if image.size != (IMAGE_SIZE, IMAGE_SIZE):
                raise InputError(
                    f"the scorer shapes reads pictures of {IMAGE_SIZE}x{IMAGE_SIZE} pixels, "
                    f"that of {caption!r} has {image.width}x{image.height}"
                )
        verdicts = shapes.judge_all([rgb(image) for image in images], captions) if images else []
        return np.array([verdict.obeyed for verdict in verdicts], np.float32)

"""`ZigZag`: Z-Sampling, which is W2SD with a guidance pair."""

from __future__ import annotations

from dataclasses import dataclass

from w2sdiff.edits.base import Edit, Edits
from w2sdiff.edits.guidance import Guidance
from w2sdiff.errors import InputError
from w2sdiff.methods.base import METHODS
from w2sdiff.methods.w2sd import W2SD


@METHODS.register
@dataclass(frozen=True)
class ZigZag(W2SD):
    """W2SD with a guidance pair: denoise guided, invert at a lower scale.

    Bai et al. 2024 (Z-Sampling), Table 4 of arXiv 2502.00473. For scales (strong, weak) the
    first-order equivalent of plain guidance is 2 strong - weak: 5.5 and 0 act like 11.

    Args:
        strong: `Guidance` of the step down; None: the pipeline's own scale.
        weak: `Guidance` of the inversion, by default 0 (unconditional).
        base: `Guidance` of the real step; None: the pipeline's own scale.
        window: as in `W2SD`.
        times: as in `W2SD`.
        inversion: as in `W2SD`.
        weak_time: as in `W2SD`.

    Cost: with 50 steps at guidance 5.5 and the default pair 247 evaluations; plain guidance: 100.

    Raises:
        InputError: a role with anything but `Guidance` (that is `W2SD`).

    Example:
        >>> ZigZag().cost(num_inference_steps=50, guidance_scale=5.5)
        247
    """

    kind = "zigzag"
    weak: Edit | Edits | None = Guidance(0.0)

    def __post_init__(self) -> None:
        """Check that the roles differ in guidance alone."""
        super().__post_init__()
        for role, edits in self.roles.items():
            if any(not isinstance(edit, Guidance) for edit in edits or ()):
                raise InputError(
                    f"ZigZag takes guidance pairs only, got {role}={edits}; "
                    "use W2SD for other pairs."
                )

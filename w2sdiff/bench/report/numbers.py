"""Numbers as people read them: as many digits as the interval bears, and a true minus sign."""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["interval", "number", "percent", "places_for", "probability", "signed"]

NONE = "–"


def places_for(widths: Iterable[float]) -> int:
    """Decimal places so that the typical width has two significant digits; 0 to 6.

    Example:
        >>> places_for([0.004, 0.005, 0.2])
        4
    """
    real = sorted(width for width in widths if math.isfinite(width) and width > 0)
    if not real:
        return 3
    return min(6, max(0, 1 - math.floor(math.log10(real[len(real) // 2]))))


def number(value: float | None, places: int) -> str:
    """A number with so many decimal places; a dash if there is none.

    Example:
        >>> number(-0.5, 2), number(float("nan"), 2)
        ('−0.50', '–')
    """
    if value is None or not math.isfinite(value):
        return NONE
    text = f"{value:,.{places}f}"
    return text.replace("-", "−") if float(text.replace(",", "")) else text.lstrip("-")


def signed(value: float, places: int) -> str:
    """A difference: with its sign, plus too.

    Example:
        >>> signed(0.5, 2), signed(0.001, 2)
        ('+0.50', '0.00')
    """
    text = number(value, places)
    return f"+{text}" if value > 0 and text.strip("0.,") else text


def interval(bounds: tuple[float, float], places: int) -> str:
    """An interval in brackets; a dash where there is none.

    Example:
        >>> interval((-0.012, 0.3), 2)
        '[−0.01, 0.30]'
    """
    if not all(map(math.isfinite, bounds)):
        return NONE
    return f"[{number(bounds[0], places)}, {number(bounds[1], places)}]"


def percent(value: float) -> str:
    """A share in whole percent.

    Example:
        >>> percent(0.615)
        '62%'
    """
    return f"{100 * value:.0f}%" if math.isfinite(value) else NONE


def probability(p: float) -> str:
    """A p value.

    Example:
        >>> probability(0.00012), probability(0.2)
        ('< 0.001', '0.200')
    """
    if not math.isfinite(p):
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"

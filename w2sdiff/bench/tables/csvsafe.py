"""CSV cells that a spreadsheet shows and never runs."""

from __future__ import annotations

__all__ = ["safe_cell"]

# With what a formula begins; full-width forms too, which spreadsheets of East Asia take for the
# narrow ones. Some programs strip spaces first, and read on after a tab or a line break.
_FORMULA = frozenset("=+-@＝＋－＠")
_BREAKS = frozenset("\t\r\n")


def safe_cell(text: str) -> str:
    """The text of a CSV cell: with an apostrophe before it if a spreadsheet would run it.

    Quotes and commas are the business of `csv.writer`. For text that users wrote (prompts, ids,
    paths, reasons); numbers are written as they are, for a negative one is no formula.

    Example:
        >>> print(safe_cell('=HYPERLINK("http://example.org")'))
        '=HYPERLINK("http://example.org")
        >>> safe_cell("a red circle")
        'a red circle'
    """
    runs = text[:1] in _BREAKS or text.lstrip()[:1] in _FORMULA
    return f"'{text}" if runs else text

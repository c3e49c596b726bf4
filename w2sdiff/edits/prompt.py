"""`Prompt(...)`: other words for one role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from w2sdiff.edits.base import EDITS, Edit
from w2sdiff.errors import InputError

if TYPE_CHECKING:
    import torch

PLACE = "{prompt}"


@EDITS.register
@dataclass(frozen=True)
class Prompt(Edit):
    """prompt="TEXT"         other words: a text, a template with {prompt}, or a column @NAME.

    The words are encoded once per call of the pipeline, by the pipeline itself: the driver runs the
    pipeline's own preamble with these arguments and takes from it whatever its loop reads, so no
    model family needs to be known.

    Args:
        text: a text, used for every item; `{prompt}` in it stands for the item's own prompt;
            `@name` takes each item's own text from the column `name` of the prompt file
            (`attach(..., columns=...)`).
        negative: the negative prompt in this role, same forms; None: as called.
        embeddings: instead of text, the pipeline's own keyword arguments, such as
            `{"prompt_embeds": ..., "pooled_prompt_embeds": ...}`. Has no JSON form.

    Cost: no evaluation; one more encoding of the prompt per call.

    Raises:
        InputError: neither or both of text and embeddings, or a column that is not there.

    Example:
        >>> Prompt("{prompt}, best quality").texts(["a cat"], {})
        ['a cat, best quality']
    """

    kind = "prompt"
    text: str | None = None
    negative: str | None = None
    embeddings: Mapping[str, torch.Tensor] | None = None

    def __post_init__(self) -> None:
        """Check that there is exactly one source of words."""
        for name in ("text", "negative"):
            words = getattr(self, name)
            if words is not None and not isinstance(words, str):
                raise InputError(f"The {name} of a Prompt is a text, or None; got {words!r}.")
        if self.embeddings is not None and not isinstance(self.embeddings, Mapping):
            raise InputError(
                'The embeddings of a Prompt are arguments of the pipeline, {"prompt_embeds": ...}; '
                f"got {self.embeddings!r}."
            )
        if self.embeddings is not None and self.text is not None:
            raise InputError("Prompt takes a text or embeddings, not both.")
        if self.text is None and self.embeddings is None and self.negative is None:
            raise InputError("Prompt needs a text, embeddings, or a negative prompt.")

    def __hash__(self) -> int:
        embeddings = None if self.embeddings is None else id(self.embeddings)
        return hash((self.text, self.negative, embeddings))

    @classmethod
    def from_text(cls, argument: str | None, value: str) -> Prompt:
        """`prompt="..."`, `prompt:negative="..."`."""
        if argument == "negative":
            return cls(negative=value)
        if argument is not None:
            raise InputError(
                f"Write prompt=TEXT or prompt:negative=TEXT; 'prompt:{argument}' means nothing."
            )
        return cls(value)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Edit:
        """Inverse of `to_json`: text forms only."""
        if data.get("embeddings") is not None:
            raise InputError("The embeddings of a Prompt have no JSON form; give the text instead.")
        return super().from_json(data)

    def to_json(self) -> dict[str, Any]:
        """Text forms only."""
        if self.embeddings is not None:
            raise InputError("Prompt(embeddings=...) has no JSON form; give the text instead.")
        return {"edit": self.kind, "text": self.text, "negative": self.negative}

    def texts(self, prompts: Sequence[str], columns: Mapping[str, Sequence[str]]) -> list[str]:
        """Each item's words, from the prompts of the call and the columns of the prompt file."""
        assert self.text is not None
        return fill(self.text, prompts, columns)


def fill(template: str, prompts: Sequence[str], columns: Mapping[str, Sequence[str]]) -> list[str]:
    """One text per item from a text, a template with `{prompt}` or a column `@name`."""
    if not template.startswith("@"):
        return [template.replace(PLACE, prompt) for prompt in prompts]
    name = template[1:]
    if name not in columns:
        raise InputError(
            f"The prompt file has no column {name!r} (columns: {', '.join(columns) or 'none'}); "
            "pass it to attach(..., columns={...}) or add it to the file."
        )
    column = list(columns[name])
    if len(column) != len(prompts):
        raise InputError(f"Column {name!r} has {len(column)} values for {len(prompts)} prompts.")
    return column

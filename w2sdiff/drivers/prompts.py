"""Other words for a role, for any pipeline: what its loop reads, encoded with another prompt.

Which local variables of a pipeline's loop depend on the prompt is not written down per family. The
driver runs the pipeline's own preamble once more with the other words, up to the loop, and
compares: a variable that the loop body reads and that came out different is rebound while the role
speaks. ControlNet, added conditions and masks are covered by that.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from w2sdiff.edits.prompt import Prompt, fill
from w2sdiff.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from w2sdiff.drivers.families import Frame
    from w2sdiff.drivers.weave import Woven
    from w2sdiff.edits.base import Context, Edits


class LoopReached(BaseException):
    """The preamble has been run; carries the loop's local variables.

    A BaseException, because modular pipelines log every Exception that passes (diffusers 0.42).
    """

    def __init__(self, frame: dict[str, Any]) -> None:
        """Keep the variables."""
        super().__init__("the pipeline's loop is reached")
        self.frame = frame


class Words:
    """The prompts of all roles in one call of the pipeline."""

    def __init__(self, prompts: Mapping[str, Prompt], context: Context, woven: Woven) -> None:
        """`prompts`: per role that has one, its `Prompt`."""
        self._prompts = prompts
        self._context = context
        self._names = woven.inputs
        self._function = woven.function
        self._probing = False
        self._probed: dict[str, dict[str, Any]] = {}
        self._changed: dict[str, dict[str, Any]] = {}
        self._called: dict[str, Any] = {}
        self._entry: dict[str, Any] = {}

    @classmethod
    def of(cls, roles: Mapping[str, Edits], context: Context, woven: Woven) -> Words:
        """Collect the `Prompt` edits of the roles."""
        worn = [(role, edit) for role, edits in roles.items() for edit in edits]
        found = {role: edit for role, edit in worn if isinstance(edit, Prompt)}
        return cls(found, context, woven)

    def encode(self, pipe: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run the preamble once per distinct `Prompt`."""
        if not self._prompts:
            return
        signature = inspect.signature(self._function)
        takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
        if "prompt" not in signature.parameters and not takes_any:
            raise UnsupportedError(f"{type(pipe).__name__} takes no prompt to exchange.")
        call = signature.bind(pipe, *args, **kwargs)
        done: dict[Prompt, dict[str, Any]] = {}
        for role, prompt in self._prompts.items():
            if prompt not in done:
                arguments = _arguments(prompt, dict(call.arguments), self._context)
                done[prompt] = self._probe(pipe, arguments)
            self._probed[role] = done[prompt]

    def loop_entered(self, frame: Frame) -> None:
        """Stop a probe, or find out what the words have changed."""
        if self._probing:
            raise LoopReached(self._read(frame))
        self._entry = self._read(frame) if self._prompts else {}
        for role, probed in self._probed.items():
            # A variable may be set with one kind of words alone: the ids of FLUX's negative ones.
            self._changed[role] = {
                name: value
                for name, value in probed.items()
                if name not in self._entry or not _same(value, self._entry[name])
            }

    def step_begins(self, frame: Frame) -> None:
        """Keep the loop's own values of what any role changes; callbacks may have replaced them."""
        names = {name for changed in self._changed.values() for name in changed}
        self._called = {name: frame[name] for name in names if name in self._entry}
        for name, value in self._called.items():
            before, after = _shape(self._entry[name]), _shape(value)
            if before != after:
                raise UnsupportedError(
                    f"A callback changed the shape of {name!r} from {before} to {after} "
                    "while a role has its own prompt; use one or the other."
                )

    @property
    def called(self) -> dict[str, Any]:
        """The loop's own values of what any role changes."""
        return self._called

    def inputs(self, role: str) -> dict[str, Any]:
        """Loop variables to bind while the role speaks; nothing if no role has words of its own."""
        changed = self._changed.get(role)
        return self._called if not changed else {**self._called, **changed}

    def _read(self, frame: Frame) -> dict[str, Any]:
        return {name: frame[name] for name in self._names if name in frame}

    def _probe(self, pipe: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        self._probing = True
        try:
            with _untouched(pipe, arguments):
                self._function(**arguments)
        except LoopReached as reached:
            return reached.frame
        finally:
            self._probing = False
        raise UnsupportedError(
            "The pipeline ended before its loop; its prompt cannot be exchanged."
        )


def _arguments(prompt: Prompt, call: dict[str, Any], context: Context) -> dict[str, Any]:
    """Arguments of the pipeline with the words exchanged."""
    # Variadic arguments are spelled out again; everything is passed by name.
    named = {key: value for key, value in call.items() if key != "kwargs"}
    call = {**named, **call.get("kwargs", {})}
    if prompt.embeddings is not None:
        return {**_without_words(call, ""), **prompt.embeddings}
    texts = [call["prompt"]] if isinstance(call.get("prompt"), str) else call.get("prompt")
    if texts is None:
        texts = _placeholders(prompt, call)
    if prompt.text is not None:
        words = _like(call.get("prompt"), fill(prompt.text, texts, context.columns))
        call = {**_without_words(call, ""), "prompt": words}
    if prompt.negative is not None:
        words = _like(call.get("prompt"), fill(prompt.negative, texts, context.columns))
        call = {**_without_words(call, "negative_"), "negative_prompt": words}
    return call


def _without_words(call: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Drop the positive (prefix "") or negative words, in text and as embeddings.

    prompt_2 goes too: left out, it follows the prompt.
    """
    starts = tuple(f"{prefix}{name}" for name in ("prompt", "pooled_prompt"))
    return {key: value for key, value in call.items() if not key.startswith(starts)}


def _placeholders(prompt: Prompt, call: dict[str, Any]) -> list[str]:
    embeds = call.get("prompt_embeds")
    for text in (prompt.text, prompt.negative):
        if text is not None and "{prompt}" in text:
            raise InputError(
                f"The template {text!r} needs the prompt as text, but the call has embeddings."
            )
    return [""] * (1 if embeds is None else len(embeds))


def _like(called: Any, texts: list[str]) -> str | list[str]:
    return texts[0] if isinstance(called, str) else texts


@contextmanager
def _untouched(pipe: Any, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Undo what the preamble changes: random numbers, scheduler, pipeline state, progress bar."""
    generators = arguments.get("generator")
    generators = generators if isinstance(generators, list | tuple) else [generators]
    states = [(one, one.get_state()) for one in generators if one is not None]
    owners = [pipe.__dict__, pipe.scheduler.__dict__]
    saved = [dict(owner) for owner in owners]
    device = pipe._execution_device
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            pipe.__dict__["_progress_bar_config"] = {"disable": True}
            if _mixes_text_and_embeddings(arguments) and hasattr(pipe, "check_inputs"):
                pipe.__dict__["check_inputs"] = _checked_without_negative(pipe.check_inputs)
            yield
    finally:
        for generator, state in states:
            generator.set_state(state)
        for owner, before in zip(owners, saved, strict=True):
            owner.clear()
            owner.update(before)


def _mixes_text_and_embeddings(arguments: Mapping[str, Any]) -> bool:
    """A role's text beside the call's negative embeddings."""
    given = [name for name, value in arguments.items() if value is not None]
    embeddings = any(name.startswith("negative_") and "embeds" in name for name in given)
    return embeddings and "prompt" in given


def _checked_without_negative(check: Callable[..., Any]) -> Callable[..., Any]:
    """`check_inputs`, shown no negative words.

    PixArt, Sana and CogVideoX refuse negative embeddings beside a text (diffusers 0.38 to 0.42),
    although they encode the one and take the others. The call itself is checked whole.
    """
    signature = inspect.signature(check)

    def checked(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        hidden = {name: None for name in bound.arguments if name.startswith("negative_")}
        bound.arguments.update(hidden)
        return check(*bound.args, **bound.kwargs)

    return checked


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if torch.is_tensor(value) else None


def _same(a: Any, b: Any) -> bool:
    """Whether two runs of the preamble made the same of a variable.

    Objects other than tensors, numbers and texts are: the preamble makes them of the same parts.
    """
    if a is None or b is None:  # a mask that is not needed for one prompt, and is for the other
        return a is b
    if torch.is_tensor(a) and torch.is_tensor(b):
        return a.shape == b.shape and bool(torch.equal(a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return a is b or type(a) is not type(b) or not isinstance(a, int | float | str) or a == b

"""`Preset`: a method in the settings it was published with, and where those come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from w2sdiff.errors import InputError
from w2sdiff.forms import check_known
from w2sdiff.generate.choose import read_options
from w2sdiff.generate.pipeline import scheduler_for
from w2sdiff.methods import METHODS, Method

__all__ = ["PLACE", "Preset"]

PLACE = "FOLDER"
"""In a role: stands for what only its owner knows the place of."""


@dataclass(frozen=True)
class Preset:
    """A method with its options, and the settings it was published with.

    Attributes:
        name: as in `preset(name)`.
        method: a name of `METHODS`.
        model: what it was published for, in words.
        source: where the numbers come from.
        options: of the method: roles in the grammar of edits, the window as "A:B".
        settings: of `Settings`: steps, guidance, scheduler.
        hub: hub id of the model; "" where no id is known.
        needs: what to get besides the model, and how to hand it over; "" for nothing.
    """

    name: str
    method: str
    model: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    hub: str = ""
    needs: str = ""

    @property
    def call(self) -> dict[str, Any]:
        """What the pipeline is called with: number of steps and guidance scale."""
        words = {"steps": "num_inference_steps", "guidance": "guidance_scale"}
        return {word: self.settings[name] for name, word in words.items() if name in self.settings}

    def scheduler(self, pipe: Any) -> Any:
        """The published scheduler with the configuration of the pipeline's own; or its own.

        Raises:
            InputError: it does not fit the pipeline.
        """
        name = self.settings.get("scheduler")
        return pipe.scheduler if name is None else scheduler_for(pipe, name)

    def make(self, **options: Any) -> Method:
        """The method, with these options instead of the published ones.

        Args:
            options: of the method: roles as edits or in their grammar, the window as `Window` or
                as "A:B"; `inversion="reference"` for what the authors' code computes.

        Raises:
            InputError: an option that the method does not have, or something that has to be given
                first; says what.

        Example:
            >>> from w2sdiff import preset
            >>> published = preset("w2sd/sdxl-guidance")
            >>> published.make().cost(50, guidance_scale=5.5)
            247
            >>> published.call
            {'num_inference_steps': 50, 'guidance_scale': 5.5}
        """
        cls = METHODS[self.method]
        check_known(f"option of {self.method}", options, cls)
        options = read_options(self.filled(options))
        for entry in dataclasses.fields(cls):  # type: ignore[arg-type]
            required = entry.default is entry.default_factory is dataclasses.MISSING
            if required and entry.name not in options:
                raise InputError(
                    f"the preset {self.name} needs {self.needs}: make({entry.name}=...)"
                )
        return cls(**options)

    def filled(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The published options, with those given in their place; None stands for not given.

        Raises:
            InputError: a role names something that only its owner knows the place of.
        """
        options = {**self.options, **{k: v for k, v in given.items() if v is not None}}
        for role, value in options.items():
            if isinstance(value, str) and f"={PLACE}" in value:
                raise InputError(
                    f"the preset {self.name} needs {self.needs}: in Python make({role}=...), on "
                    f"the command line --{role} {value}"
                )
        return options

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Within it, an error about what is absent also says what the preset needs."""
        try:
            yield
        except InputError as error:
            if not self.needs or self.needs in str(error):
                raise
            raise InputError(f"{error} (the preset {self.name} needs {self.needs})") from error

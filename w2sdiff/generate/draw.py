"""A loaded pipeline that draws: prompts and seeds in, pictures with their cost and verdict out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from w2sdiff.drivers import Run, RunStats, attach
from w2sdiff.errors import InputError, W2SDiffError
from w2sdiff.generate.calls import call_parameters, check_call, control_argument
from w2sdiff.generate.memory import forget_peak, free_memory, is_out_of_memory, peak_mb
from w2sdiff.generate.models import DENOISERS, Model
from w2sdiff.generate.noise import noise_sha256
from w2sdiff.generate.pipeline import load_pipeline
from w2sdiff.generate.settings import Settings
from w2sdiff.generate.stages import Stage, Stages
from w2sdiff.imaging import open_image
from w2sdiff.methods import Method

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

    from w2sdiff.edits import CompressedKV

__all__ = ["Drawn", "Shot", "Studio", "Verdict"]


@dataclass(frozen=True)
class Shot:
    """What one picture is of: prompt, seed of its start noise, its columns of the prompt file."""

    prompt: str
    seed: int
    columns: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data; `Shot(**data)` is the inverse."""
        return {"prompt": self.prompt, "seed": self.seed, "columns": dict(self.columns)}


@dataclass(frozen=True)
class Verdict:
    """What the oracle of the embedded world says of a picture."""

    obeyed: bool
    why: str


@dataclass(frozen=True)
class Drawn:
    """A picture, or why there is none, and what it cost.

    Attributes:
        image: the picture; None if something is wrong with it.
        reason: what is wrong with it.
        evaluations: single-branch evaluations of the network for this picture.
        calls: calls of the network for the batch it was in.
        seconds: time of the batch it was in, divided by the pictures in it.
        group: the shots that were made together: the batch, or the part of it that the memory held.
        place: its index in the group.
        notes: remarks of the run.
        verdict: the oracle's, on a caption of the embedded world.
        noise: sha256 of the start noise, see `noise_sha256`; None if there was no run.
        peak_mb: most memory of the accelerator that was in use meanwhile, in MB of 10^6 bytes; None
            on a CPU.
    """

    image: Image | None
    reason: str | None
    evaluations: int
    calls: int
    seconds: float
    group: tuple[Shot, ...]
    place: int
    notes: tuple[str, ...] = ()
    verdict: Verdict | None = None
    noise: str | None = None
    peak_mb: float | None = None


class Studio:
    """A model loaded with settings; draws with any method, several pictures at a time.

    The pipeline is loaded at the first picture and let go at the end of the ``with``. Consecutive
    pictures of one method share one `attach`, so that a checkpoint pair is loaded once.

    Args:
        model: which model.
        settings: how, resolved by `Settings.on_device`.
        on_step: told after every denoising step, for a progress bar: steps done, steps in all.
        on_stage: told after each stage (loading, prompt, denoising, decoding) how much memory it
            took; on a CPU that is the process's. None: nothing is measured.

    Example:
        >>> from w2sdiff import Plain
        >>> from w2sdiff.generate import Settings, Shot, Studio, find_model
        >>> settings = Settings(steps=2, guidance=3.0, device="cpu", dtype="float32")
        >>> with Studio(find_model("shapes-unet"), settings) as studio:
        ...     [drawn] = studio.draw(Plain(), [Shot("a red circle", seed=0)])
        >>> drawn.evaluations
        4
    """

    def __init__(
        self,
        model: Model,
        settings: Settings,
        *,
        on_step: Callable[[int, int], None] = lambda _done, _total: None,
        on_stage: Callable[[Stage], None] | None = None,
    ) -> None:
        self.model = model
        self.settings = settings
        self._on_step = on_step
        self._on_stage = on_stage
        self._stages: Stages | None = None
        self._pipe: Any = None
        self._attached = ExitStack()
        self._method: tuple[Method, CompressedKV | None] | None = None
        self._run: Run | None = None

    @property
    def pipe(self) -> Any:
        """The pipeline, loaded when first asked for."""
        if self._pipe is None:
            if self._on_stage is not None:
                self._stages = Stages(self.settings.device, self._on_stage)
            self._pipe = load_pipeline(self.model, self.settings)
            if self._stages is not None:
                self._stages.end("loading")
                if not self.settings.compile:  # a hook would be compiled with the network
                    self._stages.watch(self._found_denoiser(self._pipe))
            # Every pipeline reports its steps to what this returns, also those without callbacks.
            self._pipe.progress_bar = self._bar
        return self._pipe

    def __enter__(self) -> Studio:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the pipeline and its memory; the next picture loads it again."""
        self._attached.close()
        self._method = self._run = None
        if self._pipe is not None:
            self._pipe = None
            free_memory()

    def use(self, model: Model, settings: Settings) -> None:
        """Draw with these from now on; the pipeline is loaded anew only if another one is needed.

        Args:
            model: which model.
            settings: how, resolved by `Settings.on_device`.

        Raises:
            InputError: the loaded pipeline lacks a picture that it must be called with.
            UnsupportedError: the loaded pipeline cannot be called so.
        """
        if (model, settings.loading()) != (self.model, self.settings.loading()):
            self.close()
        self.model, self.settings = model, settings
        if self._pipe is not None:
            check_call(type(self._pipe), settings)

    def draw(
        self,
        method: Method,
        shots: Sequence[Shot],
        *,
        made: Callable[[Sequence[Drawn]], None] = lambda _: None,
    ) -> list[Drawn]:
        """Draw the shots together; where the memory does not suffice, in halves.

        A picture that is black, of one colour, or not a number at all is reported, not returned.

        Args:
            method: how.
            shots: what.
            made: told of each group that was drawn together, right after its call.

        Raises:
            InputError: the pipeline refuses the call.
            UnsupportedError: the pipeline or scheduler cannot do what the method asks for.
        """
        self._attach(method)
        return self._in_halves(list(shots), made)

    def trace(self, method: Method, shots: Sequence[Shot]) -> RunStats:
        """Run as `draw` does, but decode no pictures: for a method that is listened to.

        Raises:
            InputError: the pipeline refuses the call, or the memory does not suffice.
            UnsupportedError: as `draw`.
        """
        self._attach(method)
        try:
            self._call(list(shots), output_type="latent")
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(
                f"{len(shots)} prompts at a time do not fit the memory; take fewer (--shard)"
            ) from error
        assert self._run is not None
        return self._run.stats

    @property
    def denoiser(self) -> Any:
        """The pipeline's (first) denoising network."""
        return self._found_denoiser(self.pipe)

    @staticmethod
    def _found_denoiser(pipe: Any) -> Any:
        found = (getattr(pipe, name, None) for name in DENOISERS)
        return next(network for network in found if network is not None)

    def _attach(self, method: Method) -> None:
        everywhere = self.settings.kv_compress
        if self._method == (method, everywhere):
            return
        self._attached.close()
        self._method = None
        attached = attach(self.pipe, method, everywhere=everywhere)
        self._run = self._attached.enter_context(attached)
        self._method = method, everywhere

    def _in_halves(self, shots: list[Shot], made: Callable[[Sequence[Drawn]], None]) -> list[Drawn]:
        try:
            drawn = self._together(shots)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            made(drawn)
            return drawn
        # Outside of the handler: the exception held on to the tensors of the failed call.
        free_memory()
        if len(shots) == 1:
            return [Drawn(None, "out of memory", 0, 0, 0.0, tuple(shots), 0)]
        half = len(shots) // 2
        return self._in_halves(shots[:half], made) + self._in_halves(shots[half:], made)

    def _together(self, shots: list[Shot]) -> list[Drawn]:
        forget_peak(self.settings.device)
        output = self._call(shots)
        assert self._run is not None
        stats, peak = self._run.stats, peak_mb(self.settings.device)
        noises = self._noises(stats, shots)
        return [
            self._drawn(image, stats, shots, i, noises[i], peak)
            for i, image in enumerate(output.images)
        ]

    def _call(self, shots: list[Shot], **options: Any) -> Any:
        assert self._run is not None
        names = shots[0].columns.keys()
        self._run.columns = {name: [shot.columns[name] for shot in shots] for name in names}
        if self._stages is not None:
            self._stages.begin()
        try:
            output = self.pipe(**{**self._arguments(shots), **options})
        except W2SDiffError:
            raise
        except (ValueError, NotImplementedError) as error:
            raise InputError(_explained(error, self.model)) from error
        if self._stages is not None:
            self._stages.end("decoding")
        return output

    def _noises(self, stats: RunStats, shots: list[Shot]) -> list[str | None]:
        start, stats.start = stats.start, None
        if start is None or len(start) != len(shots):
            return [None] * len(shots)
        scheduler = self.pipe.scheduler
        return [noise_sha256(start[i : i + 1], s.seed, scheduler) for i, s in enumerate(shots)]

    def _drawn(
        self,
        pixels: Any,
        stats: RunStats,
        shots: list[Shot],
        place: int,
        noise: str | None,
        peak: float | None,
    ) -> Drawn:
        image, reason = _picture(pixels)
        judged = self.model.is_shapes and image is not None
        return Drawn(
            image,
            reason,
            evaluations=stats.evaluations,
            calls=stats.calls,
            seconds=round(stats.seconds / len(shots), 4),
            group=tuple(shots),
            place=place,
            notes=tuple(stats.notes),
            verdict=_judged(image, shots[place].prompt) if judged else None,
            noise=noise,
            peak_mb=peak,
        )

    def _arguments(self, shots: list[Shot]) -> dict[str, Any]:
        import torch

        settings, cls = self.settings, type(self.pipe)
        accepted = call_parameters(cls)
        arguments: dict[str, Any] = {
            "prompt": [shot.prompt for shot in shots],
            # Noise comes from the CPU and the picture's own seed: no device or batch changes it.
            "generator": [torch.Generator("cpu").manual_seed(shot.seed) for shot in shots],
            "num_inference_steps": settings.steps,
            "guidance_scale": settings.guidance,
            "true_cfg_scale": settings.true_cfg,
            "strength": settings.image_strength,
            # Small models know none of the sizes it rounds to; without it a size is as asked for.
            "use_resolution_binning": False,
            "output_type": "np",
        }
        longest = getattr(getattr(self.pipe, "tokenizer", None), "model_max_length", None)
        taken = accepted.get("max_sequence_length")
        # Of several tokenizers the first is CLIP's, whose 77 tokens are not what this bounds.
        alone = getattr(self.pipe, "tokenizer_2", None) is None
        if alone and taken is not None and longest is not None and longest < (taken.default or 0):
            # A small model's prompts are short: what is padding in all of them is masked, not free.
            arguments["max_sequence_length"] = longest
        if settings.negative is not None:
            arguments["negative_prompt"] = [settings.negative] * len(shots)
        if settings.size:
            arguments["width"], arguments["height"] = settings.size
        if settings.image:
            arguments["image"] = [_sized(settings.image, settings)] * len(shots)
        control = control_argument(cls)
        if settings.control_image and control:
            arguments[control] = [_sized(settings.control_image, settings)] * len(shots)
        if settings.image_prompts:  # one picture for each adapter, whatever the batch
            arguments["ip_adapter_image"] = [open_image(x.image) for x in settings.image_prompts]
        return {
            name: value
            for name, value in arguments.items()
            if value is not None and name in accepted
        }

    def _bar(self, _iterable: Any = None, total: int | None = None) -> _Bar:
        return _Bar(total or self.settings.steps, self._on_step, self._stages)


class _Bar:
    """What a pipeline takes for its progress bar; it also knows when denoising begins and ends."""

    def __init__(
        self, total: int, on_step: Callable[[int, int], None], stages: Stages | None
    ) -> None:
        self.total = total
        self._done = 0
        self._on_step = on_step
        self._stages = stages

    def update(self, n: int = 1) -> None:
        self._done += n
        self._on_step(self._done, self.total)

    def __enter__(self) -> _Bar:
        if self._stages is not None:
            self._stages.end("prompt")
        return self

    def __exit__(self, *_: object) -> None:
        if self._stages is not None:
            self._stages.end("denoising")


def _sized(path: Path, settings: Settings) -> Image:
    image = open_image(path)
    size = settings.size or (max(8, image.width // 8 * 8), max(8, image.height // 8 * 8))
    return image if image.size == size else image.resize(size)


def _picture(pixels: Any) -> tuple[Image | None, str | None]:
    """[H, W, 3] in 0..1 -> the picture, or what is wrong with it."""
    import numpy as np
    from PIL import Image

    if not np.isfinite(pixels).all():
        return None, "the picture is not a number (NaN): the numbers overflowed; try dtype float32"
    whole = (pixels * 255).round().astype("uint8")
    if whole.max() == 0:
        return None, "the picture is black"
    if whole.min() == whole.max():
        return None, "the picture is of one colour"
    return Image.fromarray(whole), None


def _judged(image: Image | None, prompt: str) -> Verdict | None:
    """The oracle's verdict; None for another size or what is no caption of its world."""
    from w2sdiff.shapes import judge

    try:
        verdict = judge(image, prompt)
    except InputError:
        return None
    return Verdict(verdict.obeyed, verdict.why)


def _explained(error: Exception, model: Model) -> str:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"{model.pipeline} refuses the call: {first}"

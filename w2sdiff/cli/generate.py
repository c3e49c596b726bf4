"""`w2sdiff generate`: pictures from prompts, with any method, resumable."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from w2sdiff.cli.console import Reporter, hush_libraries
from w2sdiff.cli.interrupt import Interrupt
from w2sdiff.errors import InputError

if TYPE_CHECKING:
    from w2sdiff.generate import ImagePrompt, LoraFile, Picture, Plan
    from w2sdiff.jobs import Event, Ledger, Summary
    from w2sdiff.prompts import PromptRow

__all__ = ["EPILOG", "generate", "parse_lora", "parse_size"]

_EPILOG = """
EDITS say what is different about the network while a role speaks: KIND=VALUE or
KIND:ARGUMENT=VALUE, separated by commas; a value with a comma in it stands in double quotes. They
are: guidance=1 (another guidance scale), lora:NAME=-1.5 (a LoRA at this weight),
checkpoint=FOLDER (another denoiser), compressed-kv=2 (compressed keys and values),
prompt="{prompt}, best quality" or prompt=@COLUMN of the prompt file, prompt:negative=TEXT.
`w2sdiff list edits` shows them all.

Example: w2sdiff generate "a red circle" --weak lora:dpo=-1.5,guidance=1 --strong guidance=1
--lora dpo=dpo.safetensors

Large pictures: --size 4096 --kv-compress 2 --verbose compresses the attention of every role,
decodes in tiles, and says what memory each stage took and how many tokens the denoiser saw.

Running the same command again makes only what is not there yet. Ctrl-C finishes the picture in
hand; a second one stops at once. Exit codes: 0 all is there, 1 something failed, 2 wrong input.
"""
EPILOG = "\n\n".join(" ".join(part.split()) for part in _EPILOG.split("\n\n"))

_METHOD, _MODEL, _MACHINE, _OUTPUT = "Method", "Model", "Machine", "Output"


def _option(panel: str, text: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar)


def generate(
    prompt: Annotated[list[str] | None, typer.Argument(help="One prompt or several.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A .txt, .csv, .tsv or .jsonl file of prompts.")
    ] = None,
    negative: Annotated[str | None, typer.Option(help="The negative prompt.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps. Default: the model's.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale. Default: the model's.")
    ] = None,
    true_cfg: Annotated[
        float | None, typer.Option("--true-cfg", help="Scale of true guidance, for FLUX.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="ddim, euler, unipc, ... Default: the model's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first picture of every prompt.")] = 0,
    count: Annotated[int, typer.Option(help="Pictures per prompt: seed, seed + 1, ...")] = 1,
    size: Annotated[
        str | None, typer.Option(help="Pixels, in multiples of 8.", metavar="N or WxH")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="A picture to start from.")] = None,
    image_strength: Annotated[
        float | None, typer.Option(help="How much of it is redrawn, up to 1. Default: 0.6.")
    ] = None,
    control_image: Annotated[
        Path | None, typer.Option(help="A picture (edges, depth, ...) for the model's ControlNet.")
    ] = None,
    ip_adapter_image: Annotated[
        list[Path] | None,
        typer.Option(help="A picture as a prompt: one for each --ip-adapter.", metavar="<path>"),
    ] = None,
    preset: Annotated[
        str | None,
        _option(_METHOD, "Published settings, unless given otherwise; see `list presets`."),
    ] = None,
    method: Annotated[
        str | None,
        _option(_METHOD, "w2sd, zigzag, autoguidance, core2, plain; see `list methods`."),
    ] = None,
    strong: Annotated[str | None, _option(_METHOD, "The strong model.", metavar="EDITS")] = None,
    weak: Annotated[str | None, _option(_METHOD, "The weak model.", metavar="EDITS")] = None,
    base: Annotated[
        str | None, _option(_METHOD, "The model that takes the steps.", metavar="EDITS")
    ] = None,
    times: Annotated[int | None, _option(_METHOD, "Reflections per step.")] = None,
    window: Annotated[
        str | None, _option(_METHOD, "Where in the run, as fractions: 0:0.5.", metavar="A:B")
    ] = None,
    inversion: Annotated[
        str | None, _option(_METHOD, "exact, or reference: as the published code does it.")
    ] = None,
    scale: Annotated[
        float | None, _option(_METHOD, "Scale of autoguidance, or of core2's slow steps.")
    ] = None,
    noise_model: Annotated[
        str | None,
        _option(_METHOD, "Noise model of core2. Default: the model's own.", metavar="FILE"),
    ] = None,
    slow_until: Annotated[
        float | None, _option(_METHOD, "End of core2's slow part, as a fraction of the run.")
    ] = None,
    fast_scale: Annotated[float | None, _option(_METHOD, "Scale of core2's fast steps.")] = None,
    every: Annotated[
        int | None, _option(_METHOD, "Steps between the unconditional halves of stale.")
    ] = None,
    model: Annotated[
        str | None,
        _option(
            _MODEL, "shapes-unet (default), shapes-dit, a folder, or a hub id.", metavar="NAME"
        ),
    ] = None,
    variant: Annotated[str | None, _option(_MODEL, "Variant of the weights, such as fp16.")] = None,
    revision: Annotated[str | None, _option(_MODEL, "Branch, tag or commit of a hub id.")] = None,
    lora: Annotated[
        list[str] | None,
        _option(
            _MODEL,
            "Load a LoRA, at weight 1 unless @W or an edit says otherwise; may be given again.",
            metavar="NAME=FILE@W",
        ),
    ] = None,
    ip_adapter: Annotated[
        list[str] | None,
        _option(
            _MODEL,
            "Load an IP-Adapter, at scale 1 unless told; its folder image_encoder lies beside it. "
            "May be given again.",
            metavar="FILE=SCALE",
        ),
    ] = None,
    device: Annotated[str, _option(_MACHINE, "auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, _option(_MACHINE, "auto, float32, float16 or bfloat16.")] = "auto",
    batch: Annotated[int, _option(_MACHINE, "Pictures made together.")] = 1,
    offload: Annotated[str, _option(_MACHINE, "none, model, sequential or group.")] = "none",
    compile_: Annotated[bool, _option(_MACHINE, "Compile the denoiser.", "--compile")] = False,
    attention_backend: Annotated[
        str | None, _option(_MACHINE, "Attention backend, as diffusers names it.")
    ] = None,
    kv_compress: Annotated[
        str | None,
        _option(
            _MODEL,
            "Compress keys and values in every role: 2, 2x1, 2:average:deep, or with trained "
            "compressors 2@FILE; `model`: as the model's own adapter says.",
            metavar="R[:KIND][:LAYERS][@ADAPTER]",
        ),
    ] = None,
    vae_tiling: Annotated[
        bool | None,
        _option(
            _MACHINE,
            "Decode pictures in overlapping tiles. Default: from 2048 pixels on.",
            "--vae-tiling/--no-vae-tiling",
        ),
    ] = None,
    out: Annotated[Path, _option(_OUTPUT, "Folder of the pictures.", "--out", "-o")] = Path("out"),
    compare: Annotated[
        bool, _option(_OUTPUT, "Also weak and strong alone, and a sheet per prompt.", "--compare")
    ] = False,
    dry_run: Annotated[
        bool, _option(_OUTPUT, "Only say what it would make and cost.", "--dry-run")
    ] = False,
    verbose: Annotated[
        bool, _option(_OUTPUT, "Say what memory each stage takes.", "--verbose", "-v")
    ] = False,
    quiet: Annotated[bool, _option(_OUTPUT, "Say nothing but errors.", "--quiet", "-q")] = False,
    as_json: Annotated[bool, _option(_OUTPUT, "JSON lines on stdout.", "--json")] = False,
    debug: Annotated[bool, _option(_OUTPUT, "Show where an error came from.", "--debug")] = False,
) -> None:
    """Draw pictures from prompts, with the cost said before and counted after.

    Without --model it draws the embedded world of coloured shapes: nothing is downloaded.
    """
    reporter = Reporter(quiet=quiet, as_json=as_json)
    rows = _rows(prompt or [], prompts)
    with hush_libraries(debug=debug):
        from w2sdiff import generate as library
        from w2sdiff.jobs import Ledger, check_writable
        from w2sdiff.methods import METHODS

        published = library.Preset("", "w2sd", "", "", hub=library.DEFAULT_MODEL)
        if preset is not None:
            published = library.preset(preset)
        method = method or published.method
        METHODS[method]  # an unknown one is said before a model is looked for
        place = model or published.hub
        if not place:
            raise InputError(
                f"the preset {preset} is for {published.model}: give its folder, or hub id, with "
                "--model"
            )
        with published.explained():
            found = library.find_model(place, variant=variant, revision=revision)
        said = published.settings
        settings = library.Settings(
            steps=_first(steps, said.get("steps"), found.default("num_inference_steps", 50)),
            guidance=_first(guidance, said.get("guidance"), found.default("guidance_scale", 1.0)),
            true_cfg=true_cfg,
            negative=negative,
            size=parse_size(size),
            scheduler=_first(scheduler, said.get("scheduler")),
            image=image,
            image_strength=library.image_strength(found, image, image_strength),
            control_image=control_image,
            loras=tuple(map(parse_lora, lora or [])),
            image_prompts=_image_prompts(ip_adapter or [], ip_adapter_image or []),
            device=device,
            dtype=dtype,
            offload=offload,
            compile=compile_,
            attention_backend=attention_backend,
            kv_compress=None if kv_compress is None else library.parse_kv(kv_compress, found),
            vae_tiling=vae_tiling,
        ).on_device(small=found.is_shapes)
        options: dict[str, Any] = {"strong": strong, "weak": weak, "base": base, "window": window}
        options |= {"times": times, "inversion": inversion, "scale": scale, "every": every}
        options |= {"noise_model": noise_model, "slow_until": slow_until, "fast_scale": fast_scale}
        if method == published.method:
            options |= published.filled(options)
        with published.explained():
            chosen, notes = library.choose_method(
                method, options, found, library.cfg_scale(found, settings)
            )
            loras = library.find_loras(chosen, settings.loras, found)
        settings = library.with_loras(settings, loras)
        arms = library.compared(chosen, method) if compare else (library.Arm(method, chosen),)
        if not 1 <= count <= 1_000_000:
            raise InputError(f"expected a count from 1 to 1000000, got {count}")
        seeds = tuple(range(seed, seed + count))
        with published.explained():
            plan = library.Plan(found, settings, arms, tuple(rows), seeds, batch)
        check_writable(out)
        with Ledger(out) as ledger:
            _announce(reporter, plan, ledger, notes)
            if dry_run:
                return
            summary = _draw(reporter, plan, ledger, sheets=compare, verbose=verbose)
    _conclude(reporter, summary, out)


def _draw(
    reporter: Reporter, plan: Plan, ledger: Ledger, *, sheets: bool, verbose: bool
) -> Summary:
    from w2sdiff import generate as library

    total = len(plan.pictures)
    stopping = "stopping after the picture in hand; Ctrl-C again to stop at once"
    said: set[str] = set()
    verdicts: dict[str, list[bool]] = {}
    with reporter.bar(total, "loading") as bar, Interrupt(lambda: reporter.note(stopping)) as stop:

        def on_picture(picture: Picture, event: Event) -> None:
            bar.advance(picture.arm.label)
            for remark in set(event.record.facts.get("notes", ())) - said:
                reporter.note(f"{picture.arm.label}: {remark}")
                said.add(remark)
            if verdict := event.record.facts.get("verdict"):
                verdicts.setdefault(picture.arm.label, []).append(verdict["obeyed"])
            _tell(reporter, ledger.folder, picture, event)

        def on_stage(stage: library.Stage) -> None:
            reporter.note(str(stage))
            reporter.result("", "stage", **stage.to_json())

        summary = library.generate(
            plan,
            ledger,
            on_picture=on_picture,
            on_step=lambda done, steps: bar.step(done, steps, plan.batch),
            on_stage=on_stage if verbose else None,
            stopping=stop,
        )
        for path in library.draw_grids(plan, ledger) if sheets else []:
            reporter.result(str(path), "sheet", file=str(path))
    for label, obeyed in verdicts.items():
        reporter.note(f"{label}: {sum(obeyed)} of {len(obeyed)} pictures obey their prompt")
    return summary


def _announce(reporter: Reporter, plan: Plan, ledger: Ledger, notes: list[str]) -> None:
    """Say what will be made and what it costs, before anything is loaded."""
    from w2sdiff.methods import Plain

    chosen = plan.arms[-1]
    cost, plain = plan.cost(chosen.method), plan.cost(Plain())
    left = sum(len(task.items) for task, _ in plan.batches if not ledger.state(task).done)
    for note in notes:
        reporter.note(f"{chosen.label}: {note}")
    reporter.note(
        f"{chosen.label} on {plan.model.name}: {plan.settings.steps} steps, {cost} evaluations "
        f"a picture, plain sampling {plain} (×{cost / plain:.2f})"
    )
    total = len(plan.pictures)
    there = f", {total - left} of them there already" if left < total else ""
    pictures = "1 picture" if total == 1 else f"{total} pictures"
    reporter.note(f"{pictures}, {plan.evaluations} evaluations in all{there}")
    reporter.result(
        "",
        "plan",
        model=plan.model.name,
        method=plan.recipes[chosen.label].method_json,
        notes=notes,
        pictures=total,
        left=left,
        evaluations=plan.evaluations,
        evaluations_per_picture=cost,
        plain_evaluations_per_picture=plain,
        out=str(ledger.folder),
    )


def _tell(reporter: Reporter, folder: Path, picture: Picture, event: Event) -> None:
    record = event.record
    files = [str(folder / name) for name in record.files]
    if event.kind == "failed":
        reporter.note(f"failed: {picture.shot.prompt[:60]!r}, {record.reason}")
    reporter.result(
        "\n".join(files),
        "picture",
        status=event.kind,
        file=files[0] if files else None,
        prompt=picture.shot.prompt,
        prompt_id=picture.row.id,
        seed=picture.shot.seed,
        arm=picture.arm.label,
        reason=record.reason,
        **{name: record.facts.get(name) for name in ("evaluations", "seconds", "verdict")},
    )


def _conclude(reporter: Reporter, summary: Summary, out: Path) -> None:
    counts = dataclasses.asdict(summary)
    words = {
        "made": "made",
        "found": "there already",
        "elsewhere": "made by another process",
        "failed": "failed",
        "left": "not reached",
    }
    parts = [f"{counts[name]} {word}" for name, word in words.items() if counts[name]]
    reporter.note(f"{', '.join(parts)}; in {out}")
    reporter.result("", "summary", **counts)
    if summary.left:
        raise typer.Exit(130)
    if summary.failed:
        raise typer.Exit(1)


def _first(*values: Any) -> Any:
    """The first value that is there."""
    return next((value for value in values if value is not None), None)


def _rows(given: list[str], file: Path | None) -> list[PromptRow]:
    from w2sdiff.prompts import PromptRow, check_prompt, read_prompts

    rows = []
    for number, text in enumerate(given, 1):
        check_prompt(text, f"prompt {number}")
        rows.append(PromptRow(str(number), text))
    if file is not None:
        rows += read_prompts(file)
    if not rows:
        raise InputError("expected a prompt, or a file of prompts with --prompts")
    return rows


def _image_prompts(adapters: list[str], images: list[Path]) -> tuple[ImagePrompt, ...]:
    from w2sdiff.generate import ImagePrompt

    if len(adapters) != len(images):
        raise InputError(
            "expected one --ip-adapter-image for each --ip-adapter, got "
            f"{len(images)} for {len(adapters)}"
        )
    return tuple(map(ImagePrompt.parse, adapters, images))


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Width and height from "512" or "768x512".

    Raises:
        InputError: the text is neither.
    """
    if text is None:
        return None
    width, x, height = text.lower().partition("x")
    try:
        return int(width), int(height if x else width)
    except ValueError:
        raise InputError(f"expected a size such as 512 or 768x512, got {text!r}") from None


def parse_lora(text: str) -> LoraFile:
    """A LoRA from "NAME=FILE" or "NAME=FILE@W".

    Raises:
        InputError: the text is neither, or there is no such file.
    """
    from w2sdiff.generate import LoraFile

    name, equals, file = text.partition("=")
    if not equals or not file:
        raise InputError(f"expected --lora NAME=FILE, got {text!r}")
    return LoraFile.parse(name, file)

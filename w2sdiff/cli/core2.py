"""`w2sdiff core2`: collect predictions, train a noise model on them, read published ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from w2sdiff.cli.console import Reporter, hush_libraries
from w2sdiff.cli.interrupt import Interrupt
from w2sdiff.errors import InputError

if TYPE_CHECKING:
    from w2sdiff.core2.collect import Keep, Plan
    from w2sdiff.jobs import Event, Summary

__all__ = ["core2"]

core2 = typer.Typer(
    help="CoRe2: collect predictions, train a noise model on them (reflect), refine with it.",
    no_args_is_help=True,
)

_METHOD, _MODEL, _MACHINE, _OUTPUT = "Method", "Model", "Machine", "Output"


def _option(panel: str, text: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar)


@core2.command("collect")
def collect(
    prompts: Annotated[
        str, typer.Option(help="A known prompt set, or a .txt, .csv, .tsv or .jsonl file.")
    ],
    out: Annotated[Path, _option(_OUTPUT, "Folder of the data.", "--out", "-o")],
    limit: Annotated[int | None, typer.Option(help="Only the first so many prompts.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first prompt; the others follow.")] = 0,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps. Default: the model's.")
    ] = None,
    keep_steps: Annotated[
        str | None, typer.Option(help="Numbers of the steps to store: 0,2,5-9. Default: all.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="The guidance scale to learn. Default: the model's.")
    ] = None,
    true_cfg: Annotated[
        float | None, typer.Option("--true-cfg", help="The same of true guidance, for FLUX.")
    ] = None,
    negative: Annotated[str | None, typer.Option(help="The negative prompt.")] = None,
    size: Annotated[
        str | None, typer.Option(help="Pixels, in multiples of 8.", metavar="N or WxH")
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="Default: the model's.")] = None,
    method: Annotated[
        str,
        _option(_METHOD, "What to learn: plain guidance, or what this method makes of a step."),
    ] = "plain",
    strong: Annotated[str | None, _option(_METHOD, "The strong model.", metavar="EDITS")] = None,
    weak: Annotated[str | None, _option(_METHOD, "The weak model.", metavar="EDITS")] = None,
    base: Annotated[str | None, _option(_METHOD, "The base model.", metavar="EDITS")] = None,
    scale: Annotated[float | None, _option(_METHOD, "Scale of autoguidance.")] = None,
    filter_: Annotated[
        str | None, _option(_METHOD, "Keep pictures by this scorer's score.", "--filter")
    ] = None,
    threshold: Annotated[
        float | None, _option(_METHOD, "Least score of a picture that is kept.")
    ] = None,
    model: Annotated[
        str | None, _option(_MODEL, "An embedded model, a folder, or a hub id.", metavar="NAME")
    ] = None,
    variant: Annotated[str | None, _option(_MODEL, "Variant of the weights, such as fp16.")] = None,
    lora: Annotated[
        list[str] | None, _option(_MODEL, "Load a LoRA.", metavar="NAME=FILE@W")
    ] = None,
    device: Annotated[str, _option(_MACHINE, "auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, _option(_MACHINE, "auto, float32, float16 or bfloat16.")] = "auto",
    offload: Annotated[str, _option(_MACHINE, "none, model, sequential or group.")] = "none",
    shard: Annotated[int, _option(_MACHINE, "Prompts drawn together, and per file.")] = 64,
    engine: Annotated[
        str, _option(_MACHINE, "local: this process; ray: actors of a cluster.")
    ] = "local",
    workers: Annotated[int | None, _option(_MACHINE, "How many actors of ray.")] = None,
    download: Annotated[
        bool, _option(_MACHINE, "Fetch weights of the scorer and prompts.", "--download")
    ] = False,
    dry_run: Annotated[
        bool, _option(_OUTPUT, "Only say what it would store and take.", "--dry-run")
    ] = False,
    quiet: Annotated[bool, _option(_OUTPUT, "Say nothing but errors.", "--quiet", "-q")] = False,
    as_json: Annotated[bool, _option(_OUTPUT, "JSON lines on stdout.", "--json")] = False,
    debug: Annotated[bool, _option(_OUTPUT, "Show where an error came from.", "--debug")] = False,
) -> None:
    """Run a pipeline over prompts and store what a noise model learns from, step by step.

    The same command goes on where it stopped; started several times, or by `accelerate launch`, the
    processes share the work.
    """
    from w2sdiff.jobs.accelerate import process

    if engine not in ("local", "ray"):
        raise InputError(f"expected the engine local or ray, got {engine!r}")
    if (filter_ is None) != (threshold is None):
        raise InputError("--filter names a scorer and --threshold its least score: give both")
    this = process()
    reporter = Reporter(quiet=quiet or not this.is_main, as_json=as_json and this.is_main)
    with hush_libraries(debug=debug):
        from w2sdiff import generate as library
        from w2sdiff.cli.generate import parse_lora, parse_size
        from w2sdiff.core2.collect import Plan
        from w2sdiff.prompts import load_set

        found = library.find_model(model or library.DEFAULT_MODEL, variant=variant)
        given = library.Settings(
            steps=found.default("num_inference_steps", 50) if steps is None else steps,
            guidance=found.default("guidance_scale", 1.0) if guidance is None else guidance,
            true_cfg=true_cfg,
            negative=negative,
            size=parse_size(size),
            scheduler=scheduler,
            loras=tuple(map(parse_lora, lora or [])),
            device=this.device if device == "auto" else device,
            dtype=dtype,
            offload=offload,
        ).on_device(small=found.is_shapes)
        options = {"strong": strong, "weak": weak, "base": base, "scale": scale}
        chosen, notes = library.choose_method(
            method, options, found, library.cfg_scale(found, given)
        )
        given = library.with_loras(given, library.find_loras(chosen, given.loras, found))
        plan = Plan(
            found,
            given,
            chosen,
            load_set(prompts, limit=limit, download=download).rows,
            first_seed=seed,
            steps=_steps(keep_steps),
            shard=shard,
            keep=_keep(filter_, threshold, given.device, download),
        )
        for note in notes:
            reporter.note(note)
        _announce(reporter, plan, out)
        if not dry_run:
            _conclude(reporter, _run(reporter, plan, out, engine, workers or 1), out)


def _announce(reporter: Reporter, plan: Plan, out: Path) -> None:
    """Say what will be stored and how long it takes, before it starts."""
    from w2sdiff.core2.collect import estimate
    from w2sdiff.generate import Studio

    with Studio(plan.model, plan.settings) as studio:
        found = estimate(plan, studio)
    reporter.note(
        f"{len(plan.rows)} prompts on {plan.model.name}, {found.samples} steps to store: about "
        f"{found.bytes / 1e6:.0f} MB and {found.seconds / 60:.1f} minutes of one process"
    )
    reporter.result(
        "",
        "plan",
        prompts=len(plan.rows),
        samples=found.samples,
        bytes=found.bytes,
        seconds=round(found.seconds, 1),
        out=str(out),
    )


def _run(reporter: Reporter, plan: Plan, out: Path, engine: str, workers: int) -> Summary:
    from w2sdiff.core2.collect import collect as run

    total = -(-len(plan.rows) // plan.shard)
    stopping = "stopping after the shard in hand; Ctrl-C again to stop at once"
    with reporter.bar(total, "loading") as bar, Interrupt(lambda: reporter.note(stopping)) as stop:

        def on_event(event: Event) -> None:
            bar.advance("shards")
            if event.kind == "failed":
                reporter.note(f"failed: {event.record.reason}")

        return run(
            plan,
            out,
            engine="ray" if engine == "ray" else "local",
            workers=workers,
            on_event=on_event,
            on_step=bar.step,
            stopping=stop,
        )


def _conclude(reporter: Reporter, summary: Summary, out: Path) -> None:
    import dataclasses

    counts = dataclasses.asdict(summary)
    words = ", ".join(f"{n} {name}" for name, n in counts.items() if n)
    reporter.note(f"shards: {words}; in {out}")
    reporter.result("", "summary", **counts)
    if summary.left:
        raise typer.Exit(130)
    if summary.failed:
        raise typer.Exit(1)


def _steps(text: str | None) -> tuple[int, ...] | None:
    """Numbers and ranges: 0,2,5-9."""
    if text is None:
        return None
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            found |= set(range(int(first), int(last if dash else first) + 1))
        except ValueError:
            raise InputError(f"expected steps such as 0,2,5-9, got {text!r}") from None
    return tuple(sorted(found))


def _keep(scorer: str | None, threshold: float | None, device: str, download: bool) -> Keep | None:
    if scorer is None or threshold is None:
        return None
    from w2sdiff.core2.collect import Keep
    from w2sdiff.scorers import parse_scorer

    return Keep(parse_scorer(scorer).to(device).allow_download(download), threshold)


@core2.command("reflect")
def reflect(
    data: Annotated[Path, typer.Option(help="A folder that `core2 collect` made.")],
    out: Annotated[Path, _option(_OUTPUT, "Folder of the training.", "--out", "-o")],
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 10_000,
    batch: Annotated[int, typer.Option(help="Stored steps per optimiser step.")] = 256,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-3,
    warmup: Annotated[int, typer.Option(help="Steps until it is reached.")] = 200,
    cooldown: Annotated[float, typer.Option(help="Share of the steps over which it falls.")] = 0.5,
    ema: Annotated[float, typer.Option(help="Decay of the weights' average.")] = 0.998,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.01,
    loss: Annotated[
        str, typer.Option(help="What is squared: the relative, prediction or x0 error.")
    ] = "relative",
    cost_ratio: Annotated[
        float, typer.Option(help="Largest cost, as a share of one evaluation of the host.")
    ] = 0.05,
    width: Annotated[int | None, typer.Option(help="Width. Default: what the cost allows.")] = None,
    depth: Annotated[int, typer.Option(help="Number of blocks.")] = 2,
    patch: Annotated[
        int | None, typer.Option(help="Side of a token in latents. Default: twice the host's.")
    ] = None,
    validation: Annotated[float, typer.Option(help="Share of the prompts held back.")] = 0.05,
    validate_every: Annotated[int, typer.Option(help="Steps between validations.")] = 500,
    accumulate: Annotated[
        int, _option(_MACHINE, "Parts of a batch whose gradients are added up.")
    ] = 1,
    precision: Annotated[str, _option(_MACHINE, "no, bf16 or fp16.")] = "no",
    compile_: Annotated[bool, _option(_MACHINE, "Compile the model.", "--compile")] = False,
    seed: Annotated[int, typer.Option(help="Of the weights and the order of the data.")] = 0,
    quiet: Annotated[bool, _option(_OUTPUT, "Say nothing but errors.", "--quiet", "-q")] = False,
    as_json: Annotated[bool, _option(_OUTPUT, "JSON lines on stdout.", "--json")] = False,
    debug: Annotated[bool, _option(_OUTPUT, "Show where an error came from.", "--debug")] = False,
) -> None:
    """Train a noise model on collected data: one safetensors file, with curves.

    The same command goes on where it stopped. `accelerate launch -m w2sdiff core2 reflect ...`
    trains in several processes.
    """
    from w2sdiff.jobs.accelerate import process

    this = process()
    reporter = Reporter(quiet=quiet or not this.is_main, as_json=as_json and this.is_main)
    with hush_libraries(debug=debug):
        from w2sdiff.core2.data import Collected
        from w2sdiff.core2.reflect import Progress
        from w2sdiff.core2.reflect import reflect as train
        from w2sdiff.core2.training import Training

        training = Training(
            steps=steps,
            batch=batch,
            lr=lr,
            warmup=warmup,
            cooldown=cooldown,
            ema=ema,
            weight_decay=weight_decay,
            loss=loss,  # type: ignore[arg-type]
            cost_ratio=cost_ratio,
            width=width,
            depth=depth,
            patch=patch,
            validation=validation,
            validate_every=validate_every,
            accumulate=accumulate,
            precision=precision,  # type: ignore[arg-type]
            compile=compile_,
            seed=seed,
        )
        collected = Collected.open(data)
        reporter.note(f"{len(collected)} steps of {collected.host.name}, {training.loss} loss")
        stopping = "stopping after the step in hand; Ctrl-C again to stop at once"
        with (
            reporter.bar(steps, "training") as bar,
            Interrupt(lambda: reporter.note(stopping)) as stop,
        ):

            def on_progress(progress: Progress) -> None:
                bar.at(progress.step, f"loss {progress.loss:.3f}")
                if progress.validation is not None:
                    errors = progress.validation.errors
                    reporter.note(
                        f"step {progress.step}: loss {progress.loss:.4f}, validation "
                        + ", ".join(f"{name} {error:.4f}" for name, error in errors.items())
                    )
                    facts = progress.validation.to_json()
                    reporter.result(
                        "", "validation", step=progress.step, loss=progress.loss, **facts
                    )

            file = train(collected, out, training, on_progress=on_progress, stopping=stop)
        if file is None:
            reporter.note(f"stopped; the same command goes on; in {out}")
            raise typer.Exit(130)
        reporter.result(str(file), "noise_model", file=str(file))


@core2.command("convert")
def convert(
    published: Annotated[Path, typer.Argument(help="A published checkpoint, .pth.")],
    out: Annotated[Path, _option(_OUTPUT, "The file to write, .safetensors.", "--out", "-o")],
    debug: Annotated[bool, _option(_OUTPUT, "Show where an error came from.", "--debug")] = False,
) -> None:
    """Read a noise model that the paper's authors published, and write it as safetensors.

    No code in the file is run.
    """
    with hush_libraries(debug=debug):
        from w2sdiff.core2.noise_model import save_noise_model
        from w2sdiff.core2.weights import load_published

        model = load_published(published)
        save_noise_model(model, out, card={"source": published.name})
    typer.echo(str(out))


@core2.command("show")
def show(
    file: Annotated[Path, typer.Argument(help="A noise model's .safetensors.")],
    debug: Annotated[bool, _option(_OUTPUT, "Show where an error came from.", "--debug")] = False,
) -> None:
    """Print what a noise model says about itself: host, training, figures."""
    import json

    del debug
    from w2sdiff.core2.noise_model import read_header

    typer.echo(json.dumps(read_header(file), indent=1, sort_keys=True))

"""`w2sdiff kv`: compressed keys and values: published weights in and out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from w2sdiff.cli.console import Reporter, hush_libraries
from w2sdiff.cli.interrupt import Interrupt
from w2sdiff.errors import InputError

if TYPE_CHECKING:
    from w2sdiff.attention import KVCompression
    from w2sdiff.generate import Model
    from w2sdiff.highres import Progress, Setup, Source, Tuning

__all__ = ["kv"]

kv = typer.Typer(
    help="Compressed keys and values: published weights in and out, training.",
    no_args_is_help=True,
)

_DATA, _CHANGE, _MACHINE, _OUTPUT = "Data", "Change", "Machine", "Output"


def _option(panel: str, text: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar)


@kv.command("convert")
def convert(
    source: Annotated[
        Path, typer.Argument(help="A published .pth; with --back, the folder of a transformer.")
    ],
    out: Annotated[
        Path, _option(_OUTPUT, "The folder to write; with --back, the .pth.", "--out", "-o")
    ],
    back: Annotated[
        bool, typer.Option("--back", help="From a diffusers folder to a .pth.")
    ] = False,
    heads: Annotated[
        int | None,
        typer.Option(help="Attention heads. Default: one per 72 channels."),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Pixels per side of its training. Default: what it says.")
    ] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Take the running average.")] = False,
    like: Annotated[
        Path | None, typer.Option(help="A diffusers folder of the same network: its config.")
    ] = None,
    ratio: Annotated[
        str | None, typer.Option(help="The compression it must have.", metavar="R or RxR")
    ] = None,
    quiet: Annotated[bool, _option(_OUTPUT, "Say nothing but errors.", "--quiet", "-q")] = False,
    as_json: Annotated[bool, _option(_OUTPUT, "JSON lines on stdout.", "--json")] = False,
    debug: Annotated[bool, _option(_OUTPUT, "Show where an error came from.", "--debug")] = False,
) -> None:
    """Read a published PixArt checkpoint into a diffusers folder, or write one back.

    Compressed blocks become kv_adapter.safetensors in the folder, which `generate --kv-compress
    model` finds there. No code in the file is run, and the way there and back loses nothing.
    """
    reporter = Reporter(quiet=quiet, as_json=as_json)
    with hush_libraries(debug=debug):
        from w2sdiff.attention import from_published, write_published
        from w2sdiff.attention.text import parse_plain_ratio

        if back:
            if heads or size or ema or like or ratio:
                raise InputError("--heads, --size, --ema, --like and --ratio do not go with --back")
            file = write_published(source, out)
            reporter.result(str(file), "published", file=str(file))
            return
        wanted = parse_plain_ratio(ratio) if ratio else None
        found = from_published(
            source, out, heads=heads, size=size, ema=ema, like=like, ratio=wanted
        )
    compression = found.compression
    what = "not compressed" if compression is None else f"compressed: {compression}"
    reporter.note(f"{found.layers} layers of width {found.width}, {what}")
    reporter.result(
        str(found.folder),
        "transformer",
        folder=str(found.folder),
        layers=found.layers,
        width=found.width,
        compression=compression and compression.to_json(),
    )


@kv.command("tune")
def tune(
    out: Annotated[Path, _option(_OUTPUT, "Folder of the tuning.", "--out", "-o")],
    model: Annotated[
        str, typer.Option(help="A PixArt pipeline: shapes-dit, a folder, or a hub id.")
    ] = "shapes-dit",
    transformer: Annotated[
        Path | None, typer.Option(help="Network to start from: the last step's. Default: model's.")
    ] = None,
    vae: Annotated[
        Path | None, _option(_CHANGE, "Swap the VAE for the one in this folder.")
    ] = None,
    size: Annotated[int | None, _option(_CHANGE, "Raise the resolution to so many pixels.")] = None,
    positions: Annotated[
        str, _option(_CHANGE, "At a new size: interpolated, or kept, one step a token.")
    ] = "interpolated",
    kv_compress: Annotated[
        str | None,
        _option(
            _CHANGE,
            "Compress keys and values; conv in the deep half, unless said otherwise. "
            "@model: begin with the compressors in the network's folder.",
            metavar="R[:KIND][:LAYERS][@ADAPTER]",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        _option(_DATA, "Pictures with captions: of generate, with .txt files, or metadata.jsonl."),
    ] = None,
    draw: Annotated[
        Path | None,
        _option(_DATA, "Draw the pictures with the model, of these prompts, at the trained size."),
    ] = None,
    draw_steps: Annotated[int | None, _option(_DATA, "Denoising steps of these.")] = None,
    render: Annotated[
        int | None, _option(_DATA, "So many pictures of the embedded world's renderer.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 1000,
    batch: Annotated[int, typer.Option(help="Pictures per step.")] = 32,
    optimiser: Annotated[
        str,
        typer.Option("--optimiser", "--optimizer", help="adamw, adafactor, came, prodigy, ..."),
    ] = "adamw",
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 2e-5,
    warmup: Annotated[int, typer.Option(help="Steps until it is reached.")] = 50,
    weight_decay: Annotated[float, typer.Option(help="Of the optimiser.")] = 0.0,
    ema: Annotated[float, typer.Option(help="Decay of the weights' average.")] = 0.999,
    only_adapter: Annotated[
        bool, typer.Option("--only-adapter", help="Train the compressors alone.")
    ] = False,
    teacher: Annotated[
        bool, typer.Option("--teacher", help="Learn what the network predicted before the change.")
    ] = False,
    drop_caption: Annotated[float, typer.Option(help="Share of captions left out.")] = 0.1,
    validation: Annotated[float, typer.Option(help="Share of the pictures held back.")] = 0.02,
    validate_every: Annotated[int, typer.Option(help="Steps between validations.")] = 100,
    keep: Annotated[
        list[int] | None, _option(_OUTPUT, "Keep what is there after so many steps; repeatable.")
    ] = None,
    accumulate: Annotated[
        int, _option(_MACHINE, "Parts of a batch whose gradients are added up.")
    ] = 1,
    precision: Annotated[str, _option(_MACHINE, "no, bf16 or fp16.")] = "no",
    checkpointing: Annotated[
        bool, _option(_MACHINE, "Compute activations twice, keep fewer.", "--checkpointing")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of order, noise and noise levels.")] = 0,
    pipeline: Annotated[
        bool, _option(_OUTPUT, "Also write the whole pipeline.", "--pipeline")
    ] = False,
    quiet: Annotated[bool, _option(_OUTPUT, "Say nothing but errors.", "--quiet", "-q")] = False,
    as_json: Annotated[bool, _option(_OUTPUT, "JSON lines on stdout.", "--json")] = False,
    debug: Annotated[bool, _option(_OUTPUT, "Show where an error came from.", "--debug")] = False,
) -> None:
    """Adapt a PixArt network to another VAE, a higher resolution, or compressed keys and values.

    One change at a time is a step of the published recipe: the next one starts from
    OUT/transformer. The same command goes on where it stopped; `accelerate launch -m w2sdiff kv
    tune ...` trains in several processes.
    """
    from w2sdiff.jobs.accelerate import process

    this = process()
    reporter = Reporter(quiet=quiet or not this.is_main, as_json=as_json and this.is_main)
    with hush_libraries(debug=debug):
        from w2sdiff.accelerator import accelerator_of
        from w2sdiff.generate import find_model
        from w2sdiff.highres import Setup, Tuning

        tuning = Tuning(
            steps=steps,
            batch=batch,
            optimiser=optimiser,
            lr=lr,
            warmup=warmup,
            weight_decay=weight_decay,
            ema=ema,
            only_adapter=only_adapter,
            teacher=teacher,
            drop_caption=drop_caption,
            validation=validation,
            validate_every=validate_every,
            keep=tuple(keep or ()),
            accumulate=accumulate,
            precision=precision,  # type: ignore[arg-type]
            checkpointing=checkpointing,
            seed=seed,
        )
        accelerator_of(tuning.precision)  # what cannot be had is said before pictures are drawn
        found = find_model(model)
        compression, adapter = _compression(kv_compress, _network(found, transformer))
        setup = Setup(
            found,
            transformer=transformer,
            vae=vae,
            size=size,
            positions=positions,  # type: ignore[arg-type]
            compression=compression,
            adapter=adapter,
        )
        pixels = size or _own_size(found, transformer)
        source = _source(reporter, found, pixels, data, draw, draw_steps, render, out)
        changes = [
            f"VAE {vae}" if vae else "",
            f"{size} pixels, positions {positions}" if size else "",
            str(compression) if compression else "",
        ]
        reporter.note(f"{found.name}: {'; '.join(filter(None, changes)) or 'nothing new'}")
        reporter.note(f"{len(source.captions)} pictures of {pixels} pixels, {tuning.optimiser}")
        place = _tune(reporter, setup, source, out, tuning, pipeline=pipeline)
    if place is None:
        reporter.note(f"stopped; the same command goes on; in {out}")
        raise typer.Exit(130)
    reporter.result(str(place), "tuned", path=str(place))


def _tune(
    reporter: Reporter, setup: Setup, source: Source, out: Path, tuning: Tuning, *, pipeline: bool
) -> Path | None:
    from w2sdiff.highres import tune as train

    stopping = "stopping after the step in hand; Ctrl-C again to stop at once"
    with (
        reporter.bar(tuning.steps, "encoding") as bar,
        Interrupt(lambda: reporter.note(stopping)) as stop,
    ):

        def on_progress(progress: Progress) -> None:
            loss = "" if progress.loss is None else f"loss {progress.loss:.4f}"
            bar.at(progress.step, loss or "training")
            if progress.validation is not None:
                said = [loss, f"validation {progress.validation:.4f}"]
                reporter.note(f"step {progress.step}: {', '.join(filter(None, said))}")
                reporter.result(
                    "",
                    "validation",
                    step=progress.step,
                    loss=progress.loss,
                    validation=progress.validation,
                )

        return train(
            setup,
            source,
            out,
            tuning,
            pipeline=pipeline,
            on_encoded=lambda done, total: bar.step(done, total, 0),
            on_progress=on_progress,
            stopping=stop,
        )


def _compression(text: str | None, network: Path) -> tuple[KVCompression | None, Path | None]:
    """The compression to train, and trained compressors to start from.

    As in `generate`, "model" stands for those that lie in the network's own folder.
    """
    if text is None:
        return None, None
    from w2sdiff.attention.adapter import adapter_file
    from w2sdiff.edits import CompressedKV
    from w2sdiff.generate.choose import split_kv

    own = adapter_file(network)
    ratio, others, place = split_kv(text, own if own.is_file() else None, str(network))
    edit = CompressedKV.of_words(ratio, others, place, compressor="conv", layers="deep")
    return edit.compression, Path(place) if place else None


def _network(model: Model, transformer: Path | None) -> Path:
    """The folder of the network that is trained: the model's own, or the one in its place."""
    folder = model.folder if transformer is None else transformer
    return folder / "transformer" if (folder / "model_index.json").is_file() else folder


def _own_size(model: Model, transformer: Path | None) -> int:
    """Pixels per side that a network is for."""
    import json

    def read(folder: Path) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
        return data

    vae = read(model.folder / "vae")
    own = read(_network(model, transformer))
    return int(own["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1))


def _source(
    reporter: Reporter,
    model: Model,
    size: int,
    data: Path | None,
    draw: Path | None,
    draw_steps: int | None,
    render: int | None,
    out: Path,
) -> Source:
    """The one source of pictures that was asked for."""
    from w2sdiff.highres import Folder, Rendered

    if sum(given is not None for given in (data, draw, render)) != 1:
        raise InputError("expected one of --data FOLDER, --draw PROMPTS and --render NUMBER")
    if render is not None:
        return Rendered(render, size)
    if draw is not None:
        return _draw(reporter, model, draw, draw_steps, size, out / "pictures")
    assert data is not None
    return Folder(data, size)


def _draw(
    reporter: Reporter, model: Model, prompts: Path, steps: int | None, size: int, out: Path
) -> Source:
    """Draw what is not there yet, at the model's own guidance: these pictures, and no others."""
    from w2sdiff import generate as library
    from w2sdiff.highres import Folder
    from w2sdiff.jobs import Ledger
    from w2sdiff.methods import Plain
    from w2sdiff.prompts import read_prompts

    settings = library.Settings(
        steps=model.default("num_inference_steps", 20) if steps is None else steps,
        guidance=model.default("guidance_scale", 4.5),
        size=(size, size),
    ).on_device(small=model.is_shapes)
    arms = (library.Arm("plain", Plain()),)
    plan = library.Plan(model, settings, arms, tuple(read_prompts(prompts)), (0,))
    with Ledger(out) as ledger, reporter.bar(len(plan.pictures), "drawing") as bar:
        summary = library.generate(
            plan, ledger, on_picture=lambda *_: bar.advance("drawing"), on_step=bar.step
        )
    reporter.note(f"pictures: {summary.made} drawn, {summary.found} there already; in {out}")
    names = [plan.file_name(picture, key) for key, picture in plan.pictures.items()]
    return Folder(out, size, only=names)

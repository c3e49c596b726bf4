"""Make the embedded checkpoints from nothing: python -m w2sdiff.shapes.train all --out DIR."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from w2sdiff.errors import W2SDiffError

STAGES = {
    "vae": "the picture codec that both models share",
    "text": "the two text encoders and their tokenizers",
    "unet": "the UNet (shapes-unet)",
    "dit": "the transformer (shapes-dit)",
    "lora": "the LoRA of a narrower style, from the finished UNet",
    "balance": "the two LoRAs with a known bias, from the finished UNet",
    "dit-lora": "the LoRA of a narrower style, from the finished transformer",
    "clip": "the trained judge (shapes-clip), a stock open_clip folder",
    "export": "the stock diffusers folders, in float16",
    "card": "the model card of each folder, from the logs and the evaluation",
    "all": "each of these, in this order",
    "unpack": "no training: a folder for the LoRAs' stages, from the embedded checkpoints",
}
_ALL = [stage for stage in STAGES if stage not in ("all", "unpack")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages that the command line names; return its exit code."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    _settle(arguments.threads)
    stages = _ALL if "all" in arguments.stages else arguments.stages
    # A polite request to stop (a shutdown, a scheduler) is treated like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = logging.getLogger(__name__)
    try:
        for stage in stages:
            log.info("%s: %s", stage, STAGES[stage])
            _runners(arguments)[stage]()
    except KeyboardInterrupt:
        log.info("stopped; the same command goes on from here")
        return 130
    except W2SDiffError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m w2sdiff.shapes.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="stages:\n" + "\n".join(f"  {n:8} {text}" for n, text in STAGES.items()),
    )
    parser.add_argument("stages", nargs="+", choices=list(STAGES), metavar="STAGE")
    parser.add_argument("--out", type=Path, required=True, help="folder; a run there is resumed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="instead of each stage's own number")
    parser.add_argument("--pool", type=int, help="training pictures made and encoded beforehand")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--device", default=None, help="default: cuda where present, else cpu")
    parser.add_argument("--no-compile", action="store_true", help="do without torch.compile")
    parser.add_argument(
        "--evaluation",
        type=Path,
        help="figures for the cards: the file of benchmarks/shapes_quality.py or shapes_clip.py",
    )
    return parser


def _settle(threads: int) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    torch.set_num_threads(threads)
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def _runners(arguments: argparse.Namespace) -> dict[str, Callable[[], object]]:
    import torch

    from w2sdiff.shapes.train import card, clip, denoiser, export, lora, text, vae
    from w2sdiff.shapes.train.loop import Schedule

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    out, compiled = arguments.out, not arguments.no_compile
    common = {"seed": arguments.seed, "device": device}

    def adjusted(schedule: Schedule) -> Schedule:
        return replace(schedule, steps=arguments.steps) if arguments.steps else schedule

    def train_texts() -> None:
        for kind in ("clip", "t5"):
            text.train_text(kind, out, schedule=adjusted(text.SCHEDULE), **common)

    def train_denoiser(kind: str) -> None:
        schedule = adjusted(denoiser.SCHEDULES[kind])
        size = arguments.pool or denoiser.POOL_SIZE
        denoiser.train_denoiser(
            kind, out, schedule=schedule, pool_size=size, compiled=compiled, **common
        )

    def train_loras(kind: str, *names: str) -> None:
        size = arguments.pool or lora.POOL_SIZE
        for name in names:
            schedule = adjusted(lora.SCHEDULE)
            lora.train_lora(name, out, kind=kind, schedule=schedule, pool_size=size, **common)

    return {
        "vae": lambda: vae.train_vae(
            out, schedule=adjusted(vae.SCHEDULE), compiled=compiled, **common
        ),
        "text": train_texts,
        "unet": lambda: train_denoiser("unet"),
        "dit": lambda: train_denoiser("dit"),
        "lora": lambda: train_loras("unet", "small"),
        "balance": lambda: train_loras("unet", "balance-strong", "balance-weak"),
        "dit-lora": lambda: train_loras("dit", "small"),
        "clip": lambda: clip.train_clip(
            out,
            schedule=adjusted(clip.SCHEDULE),
            pool_size=arguments.pool or clip.POOL_SIZE,
            **common,
        ),
        "export": lambda: export.export(out),
        "card": lambda: card.write_cards(out, arguments.evaluation),
        "unpack": lambda: export.unpack(out),
    }


if __name__ == "__main__":
    sys.exit(main())

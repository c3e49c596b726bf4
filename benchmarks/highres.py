"""A picture of 4096 x 4096 end to end: memory per stage, and how many tokens the denoiser saw.

    python benchmarks/highres.py [--size 4096] [--kv-compress 2] [--depth 2] [--out FILE]

The model is PixArt-Σ with random weights and few layers, at its full width (1152), with a VAE of
SDXL's size and a text encoder of its width: what is drawn is noise, what it takes is real. The
command that is measured is the one a user gives,

    w2sdiff generate "a lighthouse" --model FOLDER --size 4096 --kv-compress 2 --method plain \\
        --steps 1 --guidance 1 --verbose

and `--folder FOLDER` keeps the model, to give it oneself. Attention is never materialised, the VAE
decodes in tiles (by itself from 2,048 pixels on), and the pipeline's rounding of sizes, which would
quietly draw 2048 x 2048 and enlarge it, is off: the probe counts the tokens of the network's own
call.

Targets: (size / 16)² tokens, and at most 24 GB for the whole process, which holds some GB of torch
and weights. With two layers it takes most of an hour on two cores: two minutes for the step, the
rest for the VAE.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import diffusers
import torch
import transformers

import w2sdiff
from w2sdiff import shapes

RESULTS = Path(__file__).parent / "results"
HEAD, CAPTION = 72, 4096


def build(folder: Path, *, depth: int, width: int, vae_width: int) -> None:
    """Save a random PixArt-Σ pipeline."""
    torch.manual_seed(0)
    small = diffusers.DiffusionPipeline.from_pretrained(shapes.checkpoint_path("shapes-dit"))
    caption = CAPTION if width > HEAD else HEAD
    transformer = diffusers.PixArtTransformer2DModel(
        num_layers=depth,
        num_attention_heads=width // HEAD,
        attention_head_dim=HEAD,
        cross_attention_dim=width,
        caption_channels=caption,
        sample_size=128,
        use_additional_conditions=False,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(vae_width, 2 * vae_width, 4 * vae_width, 4 * vae_width),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=min(32, vae_width),
        sample_size=8 * vae_width,  # SDXL's tiles: 1,024 pixels
        scaling_factor=0.13025,
    )
    encoder = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=len(small.tokenizer),
            d_model=caption,
            d_kv=8,
            d_ff=16,
            num_layers=1,
            num_heads=2,
        )
    )
    diffusers.PixArtSigmaPipeline(
        tokenizer=small.tokenizer,
        text_encoder=encoder,
        vae=vae,
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    ).save_pretrained(folder)


def generate(folder: Path, out: Path, args: argparse.Namespace, kv: str | None) -> dict:
    """Give the command, and read what it says of its stages."""
    command = [sys.executable, "-m", "w2sdiff", "generate", "a lighthouse", "--model", str(folder)]
    command += ["--size", str(args.size), "--steps", str(args.steps), "--guidance", "1"]
    command += ["--method", "plain", "--out", str(out), "--verbose", "--json"]
    command += ["--kv-compress", kv] if kv else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    events = [json.loads(line) for line in done.stdout.splitlines()]
    stages = {e["name"]: e for e in events if e["event"] == "stage"}
    for stage in stages.values():
        del stage["event"], stage["name"]
    return {"kv_compress": kv, "stages": stages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096, help="pixels per side")
    parser.add_argument("--kv-compress", default="2", help="as generate takes it")
    parser.add_argument("--depth", type=int, default=2, help="layers")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--width", type=int, default=1152, help="a multiple of 72, to try it out")
    parser.add_argument("--vae-width", type=int, default=128, help="less, to try it out")
    parser.add_argument("--uncompressed", action="store_true", help="also without compression")
    parser.add_argument("--folder", type=Path, help="where the model is kept")
    parser.add_argument("--out", type=Path, default=RESULTS / "highres.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary) / "model"
        if not (folder / "model_index.json").is_file():
            build(folder, depth=args.depth, width=args.width, vae_width=args.vae_width)
        arms = [args.kv_compress, *([None] if args.uncompressed else [])]
        runs = [generate(folder, Path(temporary) / f"out{n}", args, a) for n, a in enumerate(arms)]
    stages = runs[0]["stages"]
    most = [stage["most_mb"] for stage in stages.values() if stage["most_mb"] is not None]
    tokens, wanted = stages["denoising"]["tokens"], (args.size // 16) ** 2
    targets = {"image tokens": {"measured": tokens, "target": wanted, "met": tokens == wanted}}
    if most:
        peak = max(most) / 1e3
        targets["memory (GB)"] = {"measured": round(peak, 2), "target": 24.0, "met": peak <= 24}
    result = {
        "benchmark": "highres",
        "versions": {
            "w2sdiff": w2sdiff.__version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
        "settings": {
            name: getattr(args, name) for name in ("size", "depth", "steps", "width", "vae_width")
        },
        "runs": runs,
        "targets": targets,
    }
    for run in runs:
        print(f"--kv-compress {run['kv_compress']}")
        for name, stage in run["stages"].items():
            seen = "" if stage["tokens"] is None else f"  {stage['tokens']:,} image tokens"
            memory = "" if stage["most_mb"] is None else f"  {stage['most_mb'] / 1e3:6.2f} GB"
            print(f"  {name:<10} {stage['seconds']:8.1f} s{memory}{seen}")
    for name, row in targets.items():
        verdict = "ok" if row["met"] else "MISSED"
        print(f"{name:<14} {row['measured']:>8}  target {row['target']:<5} {verdict}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

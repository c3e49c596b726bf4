"""Compressed keys and values: time and memory against none, and against the published module.

    python benchmarks/attention.py [--parts attention layer denoiser] [--tokens 1024 4096 ...]

Random weights at PixArt-Σ's sizes: width 1152, 16 heads, patches of 2 x 2 latents, so 1,024 tokens
are a picture of 512 x 512 and 65,536 one of 4096 x 4096. Every kind of compression at R = 2 and 4.

attention: from projected queries, keys and values to what attention returns, compression included
and projections not. layer: a whole self-attention layer of a stock transformer, by `compress`: the
projections, which compression leaves alone (`average` and the sampling kinds do two of them on
fewer tokens), cap the gain. denoiser: the whole network, reduced in depth, every layer compressed
and, as published, the deep half.

All arms of one size take turns in one process; a figure is the median, over the rounds, of the
ratio to no compression within a round. `allowed` is the ratio of multiplications, counted: what a
perfect implementation would reach. Beside ours stands a straightforward port of the published
module (`port`): it computes the same (the largest difference is given), the way one writes it down:
transpose to an image, convolve, transpose back. Forward, and forward with backward (gradients of
inputs and weights). Above 16,384 tokens forward only, once, without a round to warm up.

Memory is what a call adds to what is there before it: on a CPU the resident size of the process,
where the system tells (Linux), with CUDA what its allocator counts.

Clock: with one thread the process's CPU time, which other work on the machine hardly changes; with
more the wall clock. With CUDA (bfloat16; native attention and, where installed, xformers) the wall
clock, synchronised; the denoiser then has all 28 layers, and 16,384 and 65,536 tokens are the steps
of 2K and 4K.

Targets, on two CPU cores: attention with conv at R = 2 (4 times allowed) at least 3.4 times at
4,096 tokens and 3.7 from 9,216; no kind slower than none from 1,024; never slower than the port;
one layer at 65,536 tokens in at most 6 GB. In full it takes hours on two cores, nearly all of it at
65,536 tokens; `--tokens 1024 4096 9216 --parts attention layer --repeats 3` 25 minutes. Sizes can
be measured one by one into one file (`--add`).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import diffusers
import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

import w2sdiff
from w2sdiff.attention import KINDS, KVCompression, KVCompressor, Patch
from w2sdiff.generate.memory import forget_most, most_and_now_mb

RESULTS = Path(__file__).parent / "results"
PARTS = ("attention", "layer", "denoiser")
TOKENS = (1024, 4096, 9216, 16384, 65536)
RATIOS = (2, 4)
WIDTH, HEAD, CAPTION, WORDS = 1152, 72, 4096, 300
FORWARD_ONLY = 16384  # above it: forward only, once
NONE = "none"


# ---- the port --------------------------------------------------------------------------------


class Port(nn.Module):
    """The published layer as one writes it down: projections, compression, attention.

    `kind` as ours; the published code calls `nearest` `ave`, and has no true average.
    """

    def __init__(self, kind: str, ratio: int, width: int, heads: int) -> None:
        super().__init__()
        self.kind, self.ratio, self.heads = kind, ratio, heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        if kind == "conv":
            self.sr = nn.Conv2d(width, width, ratio, stride=ratio, groups=width)
            nn.init.constant_(self.sr.weight, 1 / ratio**2)
            nn.init.zeros_(self.sr.bias)
            self.norm = nn.LayerNorm(width)

    def reduced(self, x: Tensor, side: int) -> Tensor:
        if self.kind == "uniform_every":
            return x[:, :: self.ratio]
        image = x.transpose(1, 2).reshape(x.shape[0], -1, side, side).contiguous()
        if self.kind == "uniform":
            image = image[:, :, :: self.ratio, :: self.ratio]
        elif self.kind == "nearest":
            image = F.interpolate(image, scale_factor=1 / self.ratio, mode="nearest")
        elif self.kind == "average":
            image = F.avg_pool2d(image, self.ratio)
        else:
            image = self.sr(image)
        x = image.flatten(2).transpose(1, 2).contiguous()
        return self.norm(x) if self.kind == "conv" else x

    def attention(self, q: Tensor, k: Tensor, v: Tensor, side: int) -> Tensor:
        k, v = self.reduced(k, side), self.reduced(v, side)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor, side: int) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj(self.attention(q, k, v, side))


# ---- what counting allows ------------------------------------------------------------------------


def kept(tokens: int, kind: str, ratio: int) -> int:
    """n: keys left of so many."""
    side = math.isqrt(tokens)
    return -(-tokens // ratio) if kind == "uniform_every" else (-(-side // ratio)) ** 2


def counted(part: str, tokens: int, width: int, kind: str = NONE, ratio: int = 1) -> int:
    """Multiplications (of `denoiser`: per layer)."""
    n = tokens if kind == NONE else kept(tokens, kind, ratio)
    attention = 2 * tokens * n * width
    reads = {"conv": 2, "average": 1}.get(kind, 0)  # passes over tokens that multiply or add
    if part == "attention":
        return attention + (2 if reads else 0) * tokens * width
    early = kind != NONE and KINDS[kind].commutes  # keys and values projected from fewer tokens
    projected = 2 * tokens + 2 * (n if early else tokens)
    layer = projected * width**2 + attention + reads * tokens * width
    if part == "layer":
        return layer
    # Cross-attention (queries and output; words are few) and the feed-forward of four widths.
    cross = 2 * tokens * width**2 + 2 * tokens * WORDS * width + 2 * WORDS * width**2
    return layer + cross + 8 * tokens * width**2


# ---- running -------------------------------------------------------------------------------------


class Machine:
    """Where it runs, and how wide the network is: device, type, clock, memory."""

    def __init__(self, device: str, backend: str, width: int = WIDTH) -> None:
        self.device, self.backend = torch.device(device), backend
        self.width, self.heads = width, width // HEAD
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32
        wall = device == "cuda" or torch.get_num_threads() > 1
        self._clock = time.perf_counter if wall else time.process_time

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device, dtype=self.dtype)

    def measure(self, run: Callable[[], object]) -> tuple[float, float | None]:
        """Seconds of one call, and the MB it adds to what is there before it."""
        gc.collect()
        _trim()
        self._wait()
        forget_most(str(self.device))
        before = most_and_now_mb(str(self.device))[1]
        gc.disable()
        try:
            began = self._clock()
            run()
            self._wait()
            seconds = self._clock() - began
        finally:
            gc.enable()
        most = most_and_now_mb(str(self.device))[0]
        return seconds, None if most is None or before is None else most - before

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _trim() -> None:
    """Give what is free back to the system, or else the next call would seem to need nothing."""
    with suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)


Arm = tuple[str, int]  # kind and ratio; ("none", 1)
Wanted = list[Arm]
Arms = dict[tuple[str, Arm], Callable[[], Tensor]]  # whose ("ours", "port") and which


def attention_arms(machine: Machine, tokens: int, backward: bool, wanted: Wanted) -> Arms:
    """From projected queries, keys and values to what attention returns."""
    side = math.isqrt(tokens)
    q, k, v = (machine.randn(1, tokens, machine.width).requires_grad_(backward) for _ in range(3))

    def attend(*qkv: Tensor) -> Tensor:
        split = (x.unflatten(-1, (machine.heads, -1)) for x in qkv)
        return dispatch_attention_fn(*split, backend=machine.backend).flatten(2)

    arms: Arms = {("ours", (NONE, 1)): lambda: attend(q, k, v)}
    for kind, ratio in wanted:
        ours = KVCompressor(KVCompression(kind, ratio), machine.width).to(
            machine.device, machine.dtype
        )
        port = Port(kind, ratio, machine.width, machine.heads).to(machine.device, machine.dtype)

        def by_ours(ours: KVCompressor = ours) -> Tensor:
            return attend(q, *ours(k, v, side, side))

        def by_port(port: Port = port) -> Tensor:
            return port.attention(q, k, v, side)

        arms["ours", (kind, ratio)] = by_ours
        arms["port", (kind, ratio)] = by_port
    return arms


def layer_arms(machine: Machine, tokens: int, backward: bool, wanted: Wanted) -> Arms:
    """A whole self-attention layer of a stock transformer, and the port's with its weights."""
    side = math.isqrt(tokens)
    network = transformer(machine, depth=1)
    layer = network.transformer_blocks[0].attn1
    x = machine.randn(1, tokens, machine.width).requires_grad_(backward)
    shape = torch.empty(1, 4, 2 * side, 2 * side, device="meta")

    def bare() -> Tensor:
        with uncompressed(network, machine):
            return layer(x)

    arms: Arms = {("ours", (NONE, 1)): bare}
    for kind, ratio in wanted:
        patch = Patch(network, KVCompression(kind, ratio, "all"))
        port = Port(kind, ratio, machine.width, machine.heads).to(machine.device, machine.dtype)
        copy_weights(layer, port)

        def by_ours(patch: Patch = patch) -> Tensor:
            with enabled(patch, machine):
                patch.note((shape,), {})
                return layer(x)

        def by_port(port: Port = port) -> Tensor:
            return port(x, side)

        arms["ours", (kind, ratio)] = by_ours
        arms["port", (kind, ratio)] = by_port
    return arms


def denoiser_arms(machine: Machine, tokens: int, depth: int, layers: str, wanted: Wanted) -> Arms:
    """The whole network."""
    side = math.isqrt(tokens)
    network = transformer(machine, depth)
    call = {
        "hidden_states": machine.randn(1, 4, 2 * side, 2 * side),
        "encoder_hidden_states": machine.randn(1, WORDS, CAPTION),
        "timestep": torch.tensor([500], device=machine.device),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "return_dict": False,
    }

    def bare() -> Tensor:
        with uncompressed(network, machine):
            return network(**call)[0]

    arms: Arms = {("ours", (NONE, 1)): bare}
    for kind, ratio in wanted:
        patch = Patch(network, KVCompression(kind, ratio, layers))

        def by_ours(patch: Patch = patch) -> Tensor:
            with enabled(patch, machine):
                return network(**call)[0]

        arms["ours", (kind, ratio)] = by_ours
    return arms


def transformer(machine: Machine, depth: int) -> nn.Module:
    """PixArt-Σ's transformer with random weights and so many layers."""
    torch.manual_seed(0)
    with torch.device(machine.device):
        network = diffusers.PixArtTransformer2DModel(
            num_layers=depth,
            num_attention_heads=machine.heads,
            attention_head_dim=HEAD,
            cross_attention_dim=machine.width,
            caption_channels=CAPTION,
            sample_size=128,
            use_additional_conditions=False,
        )
    return network if machine.dtype == torch.float32 else network.to(machine.dtype)


@contextmanager
def uncompressed(network: nn.Module, machine: Machine) -> Iterator[None]:
    """The stock processor of self-attention knows one backend; for another there is another."""
    if machine.backend == "native":
        yield
        return
    from diffusers.models.attention_processor import XFormersAttnProcessor

    layers = [block.attn1 for block in network.transformer_blocks]
    stock = [layer.processor for layer in layers]
    for layer in layers:
        layer.processor = XFormersAttnProcessor()
    try:
        yield
    finally:
        for layer, processor in zip(layers, stock, strict=True):
            layer.processor = processor


@contextmanager
def enabled(patch: Patch, machine: Machine) -> Iterator[None]:
    patch.enable()
    try:
        if machine.backend != "native":
            patch.network.set_attention_backend(machine.backend)
        yield
    finally:
        patch.disable()


def copy_weights(layer: nn.Module, port: Port) -> None:
    with torch.no_grad():
        for kind in ("weight", "bias"):
            parts = [getattr(getattr(layer, name), kind) for name in ("to_q", "to_k", "to_v")]
            getattr(port.qkv, kind).copy_(torch.cat(parts))
            getattr(port.proj, kind).copy_(getattr(layer.to_out[0], kind))


def in_turns(machine: Machine, arms: Arms, *, backward: bool, repeats: int, warm: bool) -> dict:
    """Seconds and memory of every arm in every round, the arms taking turns."""
    found: dict = {name: [] for name in arms}
    for round_ in range(repeats + warm):
        for name, run in arms.items():

            def whole(run: Callable[[], Tensor] = run) -> None:
                if not backward:
                    with torch.no_grad():
                        run()
                    return
                out = run()
                out.backward(torch.ones_like(out))

            measured = machine.measure(whole)
            if round_ or not warm:
                found[name].append(measured)
    return found


def rows(
    part: str, tokens: int, width: int, found: dict, *, backward: bool, layers: float = 1.0
) -> list[dict]:
    """One row per compression; `layers`: the share of layers that is compressed."""
    bare = [seconds for seconds, _ in found["ours", (NONE, 1)]]
    wanted = [arm for whose, arm in found if whose == "ours" and arm != (NONE, 1)]

    def most(name: tuple[str, Arm]) -> float | None:
        memory = [mb for _, mb in found[name] if mb is not None]
        return max(memory, default=None)

    common = {
        "tokens": tokens,
        "pass": "forward and backward" if backward else "forward",
        "rounds": len(bare),
    }
    first = {"kind": NONE, "ratio": 1, "seconds": statistics.median(bare)}
    result = [{**common, **first, "peak_mb": most(("ours", (NONE, 1)))}]
    plain = counted(part, tokens, width)
    for kind, ratio in wanted:
        name = ("ours", (kind, ratio))
        times = [seconds for seconds, _ in found[name]]
        less = layers * counted(part, tokens, width, kind, ratio) + (1 - layers) * plain
        row = {
            **common,
            "kind": kind,
            "ratio": ratio,
            "seconds": statistics.median(times),
            "times_faster": statistics.median(b / t for b, t in zip(bare, times, strict=True)),
            "allowed": plain / less,
            "peak_mb": most(name),
        }
        port = found.get(("port", (kind, ratio)))
        if port is not None:
            theirs = [seconds for seconds, _ in port]
            row["port_seconds"] = statistics.median(theirs)
            row["than_port"] = statistics.median(p / t for p, t in zip(theirs, times, strict=True))
            row["port_peak_mb"] = most(("port", (kind, ratio)))
        result.append(row)
    return result


@torch.no_grad()
def largest_difference(arms: Arms) -> float:
    """Between ours and the port, over all compressions, relative to the largest number."""
    worst = 0.0
    for kind, ratio in [arm for whose, arm in arms if whose == "port"]:
        ours, port = arms["ours", (kind, ratio)]().float(), arms["port", (kind, ratio)]().float()
        worst = max(worst, float((ours - port).abs().max() / port.abs().max()))
    return worst


# ---- the parts -----------------------------------------------------------------------------------


def measure(machine: Machine, args: argparse.Namespace) -> dict:
    """All parts that were asked for."""
    result: dict = {}
    builders = {"attention": attention_arms, "layer": layer_arms}
    wanted = [(kind, ratio) for kind in args.kinds for ratio in args.ratios]
    for part, tokens in ((p, t) for p in args.parts for t in args.tokens):
        long = tokens > FORWARD_ONLY
        repeats, warm = (1, machine.device.type == "cuda") if long else (args.repeats, True)
        if part == "denoiser":
            depth = args.depth or (28 if machine.device.type == "cuda" else 2 if long else 4)
            for layers, share in (("all", 1.0), ("deep", max(1, depth // 2) / depth)):
                arms = denoiser_arms(machine, tokens, depth, layers, wanted)
                for backward in (False, True)[: 1 if long else 2]:
                    found = in_turns(machine, arms, backward=backward, repeats=repeats, warm=warm)
                    some = rows(part, tokens, machine.width, found, backward=backward, layers=share)
                    add(result, part, [{**row, "layers": layers, "depth": depth} for row in some])
                del arms
            continue
        for backward in (False, True)[: 1 if long else 2]:
            arms = builders[part](machine, tokens, backward, wanted)
            found = in_turns(machine, arms, backward=backward, repeats=repeats, warm=warm)
            add(result, part, rows(part, tokens, machine.width, found, backward=backward))
            if not backward and tokens == min(args.tokens):
                result.setdefault("difference_to_port", {})[part] = largest_difference(arms)
            del arms
    return result


def add(result: dict, part: str, some: list[dict]) -> None:
    result.setdefault(part, []).extend(some)
    for row in some:
        if row["kind"] == NONE:
            print(f"\n{part}, {row['tokens']:,} tokens, {row['pass']}: {row['seconds']:.4g} s")
            continue
        memory = "" if row["peak_mb"] is None else f"  {row['peak_mb']:8.0f} MB"
        port = f"  {row['than_port']:5.2f}x the port" if "than_port" in row else ""
        where = f" {row['layers']}" if "layers" in row else ""
        print(
            f"  {row['kind']:<14} R={row['ratio']}{where}  {row['times_faster']:6.2f}x "
            f"of {row['allowed']:5.2f}x{port}{memory}"
        )


def add_others(result: dict, file: Path) -> None:
    """Rows of another run, on the same machine, of what was not measured in this one."""
    other = json.loads(file.read_text("utf-8"))
    for name in ("versions", "settings"):
        if other[name] != result[name]:
            raise SystemExit(f"{file} has other {name}: {other[name]}, here {result[name]}")
    for part in PARTS:
        rows_ = result["cpu"].get(part, [])
        measured = {(row["tokens"], row["pass"]) for row in rows_}
        kept_ = [r for r in other["cpu"].get(part, []) if (r["tokens"], r["pass"]) not in measured]
        if kept_ or rows_:
            result["cpu"][part] = sorted(kept_ + rows_, key=lambda row: row["tokens"])
    result["cpu"].setdefault("difference_to_port", {}).update(
        other["cpu"].get("difference_to_port", {})
    )


def against_targets(cpu: dict) -> dict[str, dict]:
    """Each target of which something was measured."""
    found: dict[str, tuple[float, float]] = {}
    attention = [row for row in cpu.get("attention", []) if "times_faster" in row]
    forward = [row for row in attention if row["pass"] == "forward"]
    conv = {
        r["tokens"]: r["times_faster"] for r in forward if (r["kind"], r["ratio"]) == ("conv", 2)
    }
    if 4096 in conv:
        found["conv R=2 at 4,096 tokens"] = (conv[4096], 3.4)
    if large := [times for tokens, times in conv.items() if tokens >= 9216]:
        found["conv R=2 from 9,216 tokens"] = (min(large), 3.7)
    if slow := [row["times_faster"] for row in attention if row["tokens"] >= 1024]:
        found["slowest kind against none"] = (min(slow), 1.0)
    pairs = [row["than_port"] for p in PARTS for row in cpu.get(p, []) if "than_port" in row]
    if pairs:
        found["slowest against the port"] = (min(pairs), 1.0)
    rows_ = {name: {"measured": v, "target": t, "met": v >= t} for name, (v, t) in found.items()}
    most = [
        row["peak_mb"] / 1e3
        for row in cpu.get("layer", [])
        if row["tokens"] == 65536 and row["kind"] != NONE and row["peak_mb"] is not None
    ]
    if most:
        name = "one layer at 65,536 tokens (GB)"
        rows_[name] = {"measured": max(most), "target": 6.0, "met": max(most) <= 6.0}
    return rows_


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS), help="squares")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--ratios", nargs="+", type=int, default=list(RATIOS))
    parser.add_argument("--repeats", type=int, default=5, help="rounds up to 16,384 tokens")
    parser.add_argument("--width", type=int, default=WIDTH, help="a multiple of 72, to try it out")
    parser.add_argument("--depth", type=int, help="layers of the denoiser")
    parser.add_argument("--threads", type=int, help="of the CPU; default: torch's choice")
    parser.add_argument("--no-cuda", action="store_true", help="leave CUDA out")
    parser.add_argument("--add", action="store_true", help="keep what --out has of other sizes")
    parser.add_argument("--out", type=Path, default=RESULTS / "attention.json")
    args = parser.parse_args()
    for tokens in args.tokens:
        if math.isqrt(tokens) ** 2 != tokens:
            parser.error(f"expected numbers of tokens that are squares, got {tokens}")
    if args.width < HEAD or args.width % HEAD:
        parser.error(f"expected a width of whole heads of {HEAD}, got {args.width}")
    if args.threads:
        torch.set_num_threads(args.threads)
    result = {
        "benchmark": "attention",
        "versions": {
            "w2sdiff": w2sdiff.__version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
        "settings": {
            "width": args.width,
            "heads": args.width // HEAD,
            "words": WORDS,
            "threads": torch.get_num_threads(),
        },
        "clock": "CPU time" if torch.get_num_threads() == 1 else "wall time",
        "cpu": measure(Machine("cpu", "native", args.width), args),
    }
    if torch.cuda.is_available() and not args.no_cuda:
        from diffusers.utils import is_xformers_available

        names = ["native", *(["xformers"] if is_xformers_available() else [])]
        result["cuda"] = {"device": torch.cuda.get_device_name()}
        for name in names:
            result["cuda"][name] = measure(Machine("cuda", name, args.width), args)
    else:
        result["cuda"] = "not measured: no CUDA device"
    if args.add:
        add_others(result, args.out)
    result["targets"] = against_targets(result["cpu"])
    result = rounded(result)
    print()
    for name, row in result["targets"].items():
        verdict = "ok" if row["met"] else "MISSED"
        print(f"{name:<34} {row['measured']:>8}  target {row['target']:<5} {verdict}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

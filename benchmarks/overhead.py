"""What the driver costs in time: per network call, to attach, per LoRA switch, for a W2SD run.

    python benchmarks/overhead.py [--repeats 5] [--steps 50] [--out FILE]

Everything is measured in one process with interleaved repeats, and medians are compared. Without
CUDA the clock counts the process's own CPU time on one thread, so that other work on the machine
shows in the caches only; with CUDA it is the wall clock with the device synchronised.

The network is an SDXL UNet with random weights and fewer channels: the real graph (attention on two
levels, added conditions, a LoRA on every attention projection), some tens of milliseconds for a
guided call on one CPU core. It is small enough for five repeats of a 50-step run, and large enough
that what is measured is a driver around a network: on a toy of 2 ms, diffusers' own Python is half
of the time, and a ratio to it says little. The absolute cost per call is given too; it is what
carries over to other networks. On a GPU the real SDXL UNet runs at 1024 x 1024 in bfloat16, eager
and compiled.

Targets: a call through the driver at most 1.05 of a stock one; attaching at most 60 ms the first
time and 5 ms again; a LoRA switch over 700 layers at most 0.1 ms; the 50-step W2SD LoRA pair at
most 1.05 of what its network evaluations cost, (98 t1 + 50 t2) / (50 t2), with t1 and t2 the
network's time for one branch and for two. "Three legs" is the loop one writes by hand, as the
published code does: both branches everywhere, and `set_adapters` before every leg.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import diffusers
import torch
from torch import nn

import w2sdiff
from w2sdiff import W2SD, Guidance, Lora, Plain, attach
from w2sdiff.drivers.weave import woven_call

RESULTS = Path(__file__).parent / "results"
SCALE = 5.5
PAIR = W2SD(
    strong=Guidance(1.0) | Lora("style", 0.8),
    weak=Guidance(1.0) | Lora("style", -1.5),
    base=Lora("style", 0.8),
)
SMALL = {
    "sample_size": 32,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2),
    "attention_head_dim": (2, 4),
    "norm_num_groups": 8,
    "cross_attention_dim": 64,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 32,
}
SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
# SDXL's blocks and transformer depths with a handful of channels: its 700 LoRA layers
SDXL_GRAPH = SDXL | {
    "block_out_channels": (8, 8, 8),
    "attention_head_dim": (1, 1, 1),
    "norm_num_groups": 4,
    "cross_attention_dim": 8,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 32,
}
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
EVERY_LINEAR = [*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]


class Bench:
    """A random SDXL pipeline, the arguments of one call, and a clock for its device."""

    def __init__(self, config: dict, device: str = "cpu", dtype: torch.dtype = torch.float32):
        torch.manual_seed(0)
        self.device, self.dtype = torch.device(device), dtype
        with torch.device(device):
            unet = diffusers.UNet2DConditionModel(
                **config, use_linear_projection=True, addition_embed_type="text_time"
            )
        self.unet = (unet if dtype == torch.float32 else unet.to(dtype)).eval()
        self.pipe = diffusers.StableDiffusionXLPipeline(
            vae=None,
            text_encoder=None,
            text_encoder_2=None,
            tokenizer=None,
            tokenizer_2=None,
            unet=self.unet,
            scheduler=diffusers.DDIMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                steps_offset=1,
                clip_sample=False,
                set_alpha_to_one=False,
            ),
            add_watermarker=False,
        )
        self.pipe.set_progress_bar_config(disable=True)
        ids = 6 * config["addition_time_embed_dim"]
        pooled = config["projection_class_embeddings_input_dim"] - ids
        self.words = [self.randn(1, 77, config["cross_attention_dim"]) for _ in range(2)]
        self.pooled = [self.randn(1, pooled) for _ in range(2)]
        self.noise = self.randn(1, 4, config["sample_size"], config["sample_size"])

    def randn(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=self.device, dtype=self.dtype)

    def add_lora(self, targets: list[str]) -> int:
        """Add a random LoRA called "style"; returns the number of its layers."""
        from peft import LoraConfig
        from peft.tuners.lora import LoraLayer

        self.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=targets), "style")
        layers = [layer for layer in self.unet.modules() if isinstance(layer, LoraLayer)]
        for layer in layers:
            nn.init.normal_(layer.lora_B["style"].weight, std=0.02)
        return len(layers)

    def call(self, steps: int) -> dict:
        return {
            "prompt_embeds": self.words[0],
            "negative_prompt_embeds": self.words[1],
            "pooled_prompt_embeds": self.pooled[0],
            "negative_pooled_prompt_embeds": self.pooled[1],
            "height": 8 * self.noise.shape[-2],
            "width": 8 * self.noise.shape[-1],
            "latents": self.noise,
            "guidance_scale": SCALE,
            "num_inference_steps": steps,
            "output_type": "latent",
        }

    def sample(self, steps: int) -> torch.Tensor:
        return self.pipe(**self.call(steps)).images

    def added(self, branches: int) -> dict[str, torch.Tensor]:
        """SDXL's added conditions for the first branches (conditional, unconditional)."""
        size = float(8 * self.noise.shape[-1])
        ids = torch.tensor([[size, size, 0, 0, size, size]] * branches)
        return {
            "text_embeds": torch.cat(self.pooled[:branches]),
            "time_ids": ids.to(self.device, self.dtype),
        }

    def network(self, branches: int) -> Callable[[], object]:
        """The UNet alone, on what the pipeline gives it."""
        added = self.added(branches)
        x, words = self.noise.repeat(branches, 1, 1, 1), torch.cat(self.words[:branches])
        t = torch.tensor(481, device=self.device)

        @torch.no_grad()
        def run() -> object:
            return self.pipe.unet(
                x, t, encoder_hidden_states=words, added_cond_kwargs=added, return_dict=False
            )

        return run

    def seconds(self, run: Callable[[], object]) -> float:
        """Time of one call of `run`: CPU time, or wall time with the device synchronised."""
        cuda = self.device.type == "cuda"
        clock = time.perf_counter if cuda else time.process_time
        if cuda:
            torch.cuda.synchronize()
        gc.disable()  # a collection of somebody else's garbage is not the driver's
        try:
            began = clock()
            run()
            if cuda:
                torch.cuda.synchronize()
            return clock() - began
        finally:
            gc.enable()


@torch.no_grad()
def three_legs(bench: Bench, steps: int) -> torch.Tensor:
    """The same W2SD as one writes it by hand: DDIM down, up and down, both branches everywhere."""
    pipe, scheduler, unet = bench.pipe, bench.pipe.scheduler, bench.pipe.unet
    scheduler.set_timesteps(steps, device=bench.device)
    products = scheduler.alphas_cumprod.to(bench.device)
    stride = scheduler.config.num_train_timesteps // steps
    words, added = torch.cat(bench.words), bench.added(2)

    def predict(x, t, weight, scale):
        pipe.set_adapters("style", weight)
        both = unet(
            torch.cat([x] * 2),
            t,
            encoder_hidden_states=words,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        c, u = both.chunk(2)
        return u + scale * (c - u)

    def move(x, noise, source, target):
        x0 = (x - (1 - source).sqrt() * noise) / source.sqrt()
        return target.sqrt() * x0 + (1 - target).sqrt() * noise

    x = bench.noise
    for i, t in enumerate(scheduler.timesteps):
        here = products[t]
        there = products[t - stride] if t >= stride else scheduler.final_alpha_cumprod
        if i < steps - 1:
            x = move(x, predict(x, t, 0.8, 1.0), here, there)
            x = move(x, predict(x, t, -1.5, 1.0), there, here)
        x = scheduler.step(predict(x, t, 0.8, SCALE), t, x).prev_sample
    return x


def interleaved(bench: Bench, arms: dict[str, Callable[[], object]], repeats: int) -> dict:
    """Median seconds of each arm, the arms taking turns; one round first to warm up."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for round_ in range(repeats + 1):
        for name, run in arms.items():
            taken = bench.seconds(run)
            if round_:
                times[name].append(taken)
    return {name: statistics.median(taken) for name, taken in times.items()}


def attaching(bench: Bench) -> dict:
    """Milliseconds of entering and leaving `attach`, for classes never woven before and again."""

    def once() -> None:
        with attach(bench.pipe, Plain()):
            pass

    first = 1e3 * bench.seconds(once)
    again = 1e3 * statistics.median(bench.seconds(once) for _ in range(50))
    others = [
        diffusers.StableDiffusionPipeline,
        diffusers.StableDiffusion3Pipeline,
        diffusers.FluxPipeline,
        diffusers.PixArtSigmaPipeline,
        diffusers.StableDiffusionXLImg2ImgPipeline,
        diffusers.StableDiffusionXLControlNetPipeline,
    ]
    weaving = {cls.__name__: 1e3 * bench.seconds(partial(woven_call, cls)) for cls in others}
    return {"first_ms": first, "again_ms": again, "weaving_other_classes_ms": weaving}


def per_call(bench: Bench, steps: int, repeats: int) -> dict:
    """A guided run with and without the driver, per call of the network."""

    def driven() -> None:
        with attach(bench.pipe, Plain()) as run:
            bench.sample(steps)
        assert run.stats.calls == steps

    took = interleaved(bench, {"stock": lambda: bench.sample(steps), "driver": driven}, repeats)
    return {
        "steps": steps,
        "stock_ms": 1e3 * took["stock"] / steps,
        "driver_ms": 1e3 * took["driver"] / steps,
        "added_us": 1e6 * (took["driver"] - took["stock"]) / steps,
        "ratio": took["driver"] / took["stock"],
    }


def lora_switch(repeats: int) -> dict:
    """One role's LoRA weight in and out again on SDXL's graph, against `set_adapters`."""
    bench = Bench(SDXL_GRAPH)
    layers = bench.add_lora(EVERY_LINEAR)
    edit = Lora("style", -1.5)
    with attach(bench.pipe, Plain()) as run:
        edit.enter(run.context)()  # finds the layers, once per run

        def switch() -> None:
            for _ in range(10):
                edit.enter(run.context)()

        ours = statistics.median(bench.seconds(switch) for _ in range(10 * repeats)) / 20
    theirs = statistics.median(
        bench.seconds(lambda: bench.pipe.set_adapters("style", -1.5)) for _ in range(3 * repeats)
    )
    return {
        "layers": layers,
        "switch_ms": 1e3 * ours,
        "set_adapters_ms": 1e3 * theirs,
    }


def w2sd_pair(bench: Bench, steps: int, repeats: int) -> dict:
    """The LoRA pair 0.8 / -1.5, guidance 1.0 in reflection and 5.5 outside, relative to plain."""
    results = {}

    def driven() -> None:
        with attach(bench.pipe, PAIR) as run:
            results["driver"] = bench.sample(steps)
        results["evaluations"] = run.stats.evaluations

    def by_hand() -> None:
        results["by hand"] = three_legs(bench, steps)

    bench.pipe.set_adapters("style", 0.8)
    arms = {
        "t1": bench.network(1),
        "t2": bench.network(2),
        "plain": lambda: bench.sample(steps),
        "driver": driven,
        "t1 again": bench.network(1),
        "t2 again": bench.network(2),
        "by hand": by_hand,
    }
    for name in (
        "t1",
        "t2",
        "t1 again",
        "t2 again",
    ):  # as many calls as half a run, not a single one
        arms[name] = _repeated(arms[name], steps // 2)
    took = interleaved(bench, arms, repeats)
    t1, t2 = ((took[t] + took[f"{t} again"]) / (steps // 2) / 2 for t in ("t1", "t2"))
    network = (2 * (steps - 1) * t1 + steps * t2) / (steps * t2)
    ratio = took["driver"] / took["plain"]
    size = float(results["by hand"].float().abs().max())
    gap = float((results["driver"].float() - results["by hand"].float()).abs().max())
    return {
        "steps": steps,
        "evaluations": results["evaluations"],
        "evaluations_by_hand": 4 * (steps - 1) + 2 * steps,
        "t1_ms": 1e3 * t1,
        "t2_ms": 1e3 * t2,
        "plain_s": took["plain"],
        "w2sd_s": took["driver"],
        "three_legs_s": took["by hand"],
        "ratio_to_plain": ratio,
        "ratio_of_the_network_alone": network,
        "over_the_network": ratio / network,
        "three_legs_to_plain": took["by hand"] / took["plain"],
        "largest_difference_to_three_legs": gap / size,
    }


def _repeated(run: Callable[[], object], times: int) -> Callable[[], None]:
    def many() -> None:
        for _ in range(times):
            run()

    return many


def on_cpu(args: argparse.Namespace) -> dict:
    torch.set_num_threads(1)
    bench = Bench(SMALL)
    bench.sample(2)
    result = {"attach": attaching(bench), "lora_switch": lora_switch(args.repeats)}
    result["call"] = per_call(bench, args.steps // 2, args.repeats)
    bench.add_lora(ATTENTION)
    result["w2sd"] = w2sd_pair(bench, args.steps, args.repeats)
    return result


def on_cuda(args: argparse.Namespace, *, compiled: bool) -> dict:
    bench = Bench(SDXL, "cuda", torch.bfloat16)
    layers = bench.add_lora(ATTENTION)
    if compiled:
        bench.unet.compile()
    result = {
        "device": torch.cuda.get_device_name(),
        "lora_layers": layers,
        "call": per_call(bench, args.steps // 2, args.repeats),
        "w2sd": w2sd_pair(bench, args.steps, args.repeats),
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30,
    }
    del bench
    torch._dynamo.reset()
    torch.cuda.empty_cache()
    return result


def against_targets(result: dict) -> dict[str, dict]:
    """Each target with what was measured."""
    cpu = result["cpu"]
    rows = {
        "driver / stock, per call": (cpu["call"]["ratio"], 1.05),
        "attach, first (ms)": (cpu["attach"]["first_ms"], 60.0),
        "attach, again (ms)": (cpu["attach"]["again_ms"], 5.0),
        "LoRA switch (ms)": (cpu["lora_switch"]["switch_ms"], 0.1),
        "W2SD over its network": (cpu["w2sd"]["over_the_network"], 1.05),
    }
    for name in ("cuda_eager", "cuda_compiled"):
        if result.get(name):
            rows[f"{name}: driver / stock"] = (result[name]["call"]["ratio"], 1.05)
            rows[f"{name}: W2SD over its network"] = (
                result[name]["w2sd"]["over_the_network"],
                1.05,
            )
    return {
        name: {"measured": value, "target": target, "met": value <= target}
        for name, (value, target) in rows.items()
    }


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=RESULTS / "overhead.json")
    args = parser.parse_args()

    result = {
        "benchmark": "overhead",
        "versions": {
            "w2sdiff": w2sdiff.__version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
        "settings": {"repeats": args.repeats, "steps": args.steps},
        "clock": "CPU time of one thread; CUDA: wall time, synchronised",
        "cpu": on_cpu(args),
    }
    if torch.cuda.is_available():
        result["cuda_eager"] = on_cuda(args, compiled=False)
        result["cuda_compiled"] = on_cuda(args, compiled=True)
    else:
        result["cuda"] = "not measured: no CUDA device"
    result["targets"] = against_targets(result)
    result = rounded(result)
    for name, row in result["targets"].items():
        verdict = "ok" if row["met"] else "MISSED"
        print(f"{name:<32} {row['measured']:>8}  target {row['target']:<5} {verdict}")
    w2sd = result["cpu"]["w2sd"]
    print(
        f"W2SD {w2sd['ratio_to_plain']}x plain for {w2sd['evaluations']} evaluations, by hand "
        f"{w2sd['three_legs_to_plain']}x for {w2sd['evaluations_by_hand']}"
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

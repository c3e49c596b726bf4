"""Each training stage on a budget of seconds: it resumes exactly, it exports stock folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from w2sdiff.errors import InputError
from w2sdiff.shapes import checkpoint_path
from w2sdiff.shapes.train import denoiser, export, lora, text, vae
from w2sdiff.shapes.train.card import parameter_counts, write_cards
from w2sdiff.shapes.train.denoiser import Diffusion
from w2sdiff.shapes.train.evaluate import score, wilson
from w2sdiff.shapes.train.loop import Schedule, train
from w2sdiff.shapes.train.muon import Muon, orthogonalise
from w2sdiff.shapes.train.networks import build_scheduler
from w2sdiff.shapes.train.pool import Conditions
from w2sdiff.shapes.world import VOCABULARY

POOL = 64
LORAS = [(kind, name) for kind, names in lora.OF_KIND.items() for name in names]


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """A training folder in which every stage ran for a step or two."""
    out = tmp_path_factory.mktemp("train")
    vae.train_vae(out, schedule=short(vae.SCHEDULE, 1), compiled=False)
    for kind in ("clip", "t5"):
        text.train_text(kind, out, schedule=short(text.SCHEDULE, 1))
    for kind in ("unet", "dit"):
        schedule = replace(short(denoiser.SCHEDULES[kind], 2), keep_every=1)
        denoiser.train_denoiser(kind, out, schedule=schedule, pool_size=POOL, compiled=False)
    for kind, name in LORAS:
        schedule = short(lora.SCHEDULE, 2)
        lora.train_lora(name, out, kind=kind, schedule=schedule, pool_size=POOL)
    export.export(out, {"unet": 1, "dit": 1})
    return out


def short(schedule: Schedule, steps: int) -> Schedule:
    return replace(schedule, steps=steps, batch=4, keep_every=0, watch_every=0)


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_a_resumed_run_is_the_run_that_never_stopped(out, tmp_path, kind):
    for part in ("vae", "text", "pools"):
        (tmp_path / part).symlink_to(out / part)
    steady = replace(short(denoiser.SCHEDULES[kind], 4), cooldown=0.25)
    settings = {"pool_size": POOL, "compiled": False}
    whole = denoiser.train_denoiser(kind, tmp_path, schedule=steady, **settings).state_dict()
    (tmp_path / "runs").rename(tmp_path / "whole")

    stopping = StopAfter(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denoiser, "pool_loss", stopping.wrapping(denoiser.pool_loss))
        with pytest.raises(KeyboardInterrupt):
            denoiser.train_denoiser(kind, tmp_path, schedule=steady, **settings)
    resumed = denoiser.train_denoiser(kind, tmp_path, schedule=steady, **settings).state_dict()

    assert stopping.steps == 2
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


class StopAfter:
    """Ctrl-C after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left, self.steps = steps, 0

    def wrapping(self, make):
        def made(*args, **kwargs):
            loss = make(*args, **kwargs)

            def stopping(step, generator):
                if self.steps == self.left:
                    raise KeyboardInterrupt
                self.steps += 1
                return loss(step, generator)

            return stopping

        return made


@pytest.mark.parametrize("name", ["shapes-unet", "shapes-dit"])
def test_exported_folders_load_through_stock_diffusers(out, name):
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(out / name)
    assert {p.dtype for p in pipe.text_encoder.parameters()} == {torch.float32}
    asked = ["a red circle", "two blue squares", "a cyan cross"]
    assert len(score(pipe, asked, guidance_scale=2.0, num_inference_steps=2)) == len(asked)


def test_the_weak_denoiser_is_an_earlier_step_of_the_same_run(out):
    for kind, part in (("unet", "unet"), ("dit", "transformer")):
        folder = out / export.NAMES[kind]
        for name, step in ((part, 2), (f"{part}_weak", 1)):
            shipped = load_file(folder / name / "diffusion_pytorch_model.safetensors")
            kept = load_file(out / "runs" / kind / f"ema-{step:06d}.safetensors")
            assert all(torch.equal(shipped[key], kept[key].half()) for key in kept)


def test_loras_load_into_the_stock_pipeline_and_change_what_it_predicts(out):
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(out / "shapes-unet")
    x, text_states = torch.ones(1, 8, 8, 8), torch.ones(1, 16, text.WIDTH)
    with torch.no_grad():
        plain = pipe.unet(x, 500, encoder_hidden_states=text_states).sample
        for name in lora.LORAS:
            pipe.load_lora_weights(out / "shapes-unet" / "loras" / f"{name}.safetensors")
            assert not torch.equal(
                pipe.unet(x, 500, encoder_hidden_states=text_states).sample, plain
            )
            pipe.unload_lora_weights()


def test_the_loras_of_the_transformer_fit_it_and_change_what_it_predicts(out):
    from diffusers import PixArtTransformer2DModel
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    folder = out / "shapes-dit"
    transformer = PixArtTransformer2DModel.from_pretrained(folder / "transformer")

    def predicted() -> torch.Tensor:
        states, mask = torch.ones(1, 16, text.WIDTH), torch.ones(1, 16)
        words = Conditions(states, mask)
        with torch.no_grad():
            x, time = torch.ones(1, 8, 8, 8), torch.tensor([500])
            return denoiser.run_denoiser("dit", transformer, x, time, words)

    plain = predicted()
    config = LoraConfig(r=lora.RANK, lora_alpha=lora.RANK, target_modules=lora.TARGETS)
    inject_adapter_in_model(config, transformer)
    assert torch.equal(predicted(), plain)
    assert [file.stem for file in (folder / "loras").iterdir()] == list(lora.OF_KIND["dit"])
    weights = load_file(folder / "loras" / "small.safetensors")
    named = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    found = set_peft_model_state_dict(transformer, named)
    assert not found.unexpected_keys
    assert not [name for name in found.missing_keys if "lora" in name]
    assert not torch.equal(predicted(), plain)


def test_a_training_folder_is_made_of_the_embedded_checkpoints_and_exports_them_again(tmp_path):
    export.unpack(tmp_path)
    for kind in ("unet", "dit"):
        step = denoiser.SCHEDULES[kind].steps
        folder = export.export_one(kind, tmp_path, tmp_path / kind, weak_step=step)
        for part in parameter_counts(folder):
            if not part.endswith("_weak"):
                again = weights_of(folder / part)
                shipped = weights_of(checkpoint_path(export.NAMES[kind]) / part)
                assert again.keys() == shipped.keys()
                assert all(torch.equal(again[name], shipped[name]) for name in shipped)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*model.safetensors")
    return load_file(file)


def test_cards_state_what_the_folder_holds(out):
    for card in write_cards(out):
        counts = parameter_counts(card.parent)
        assert all(f"| {part} | {n:,} |" in card.read_text() for part, n in counts.items())
    with pytest.raises(InputError, match="no evaluation"):
        write_cards(out, out / "nowhere.json")


@pytest.mark.parametrize("kind", ["clip", "t5"])
def test_every_word_of_the_world_is_one_token_and_other_text_is_spelled_out(kind):
    tokenizer = text.build_tokenizer(kind)
    for word in VOCABULARY:
        assert len(tokenizer(word, add_special_tokens=False).input_ids) == 1
    ids, _ = text.tokenise(tokenizer, ["zebra", "42 ünïcode 圆", ""])
    assert ids.shape == (3, text.MAX_TOKENS)
    spelled = tokenizer("zebra", add_special_tokens=False).input_ids
    assert len(spelled) >= 5
    assert tokenizer.unk_token_id not in spelled


def test_short_sequences_in_training_equal_the_padded_ones_of_the_stock_pipelines(out):
    from diffusers import DiffusionPipeline

    captions = ["two red circles", "a blue square left of a pink cross"]
    pipe = DiffusionPipeline.from_pretrained(out / "shapes-dit")
    states, mask = text.embed("t5", pipe.tokenizer, pipe.text_encoder, captions)
    with torch.no_grad():
        padded, padded_mask, empty, _ = pipe.encode_prompt(captions, True, negative_prompt="")
        x, call = torch.ones(2, 8, 8, 8), {"timestep": torch.tensor([500, 500])}
        call["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
        outputs = [
            pipe.transformer(x, encoder_hidden_states=s, encoder_attention_mask=m, **call).sample
            for s, m in ((states, mask), (padded, padded_mask))
        ]
        torch.testing.assert_close(*outputs, atol=1e-5, rtol=0)
    nothing, _ = text.embed("t5", pipe.tokenizer, pipe.text_encoder, [""])
    torch.testing.assert_close(empty[0, :1], nothing[0, :1], atol=1e-5, rtol=0)

    pipe = DiffusionPipeline.from_pretrained(out / "shapes-unet")
    with torch.no_grad():
        stock, empty = pipe.encode_prompt(captions, "cpu", 1, True)
    ours, _ = text.embed("clip", pipe.tokenizer, pipe.text_encoder, [*captions, ""])
    torch.testing.assert_close(torch.cat([stock, empty[:1]]), ours, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_the_loss_is_the_error_of_v_whatever_is_predicted(kind):
    diffusion = Diffusion(build_scheduler(kind), "cpu")
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(16, 8, 8, 8, generator=generator) for _ in range(2))
    times = torch.full((16,), 400)
    alpha, sigma = diffusion.alpha[400], diffusion.sigma[400]
    assert alpha**-2 < diffusion.LARGEST_WEIGHT
    x = diffusion.noised(x0, noise, times)
    guess = x0 + 0.1 * torch.randn(x0.shape, generator=generator)  # a wrong idea of x0 ...
    noise_guess = (x - alpha * guess) / sigma  # ... and what it means for noise and v
    v_guess, v = alpha * noise_guess - sigma * guess, alpha * noise - sigma * x0
    output = v_guess if diffusion.prediction == "v_prediction" else noise_guess
    loss = diffusion.loss(output, x0, noise, times)
    torch.testing.assert_close(loss, ((v_guess - v) ** 2).mean(), rtol=1e-4, atol=0)
    drawn = diffusion.times(4000, generator)
    assert 0 <= drawn.min() < 50
    assert 950 < drawn.max() < 1000


def test_muon_steps_are_orthogonal_and_go_down():
    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((6, 6), (4, 10), (10, 4)):
        values = torch.linalg.svdvals(
            orthogonalise(torch.randn(3, rows, columns, generator=generator))
        )
        assert values.min() > 0.4
        assert values.max() < 1.3
    target = torch.randn(5, 8, generator=generator)
    weight = torch.nn.Parameter(torch.zeros(5, 8))
    optimiser = Muon([weight], lr=0.1)
    before = (weight - target).square().mean().item()
    for _ in range(80):
        loss = (weight - target).square().mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert loss.item() < 0.2 * before
    with pytest.raises(ValueError, match="AdamW"):
        Muon([torch.zeros(3, requires_grad=True)], lr=0.1)


def test_the_loop_minimises_logs_keeps_and_averages(tmp_path):
    module = torch.nn.Linear(2, 1)
    schedule = Schedule(
        steps=300,
        batch=8,
        lr=0.05,
        warmup=5,
        cooldown=0.5,
        ema=0.9,
        keep_every=150,
        watch_every=150,
    )
    seen = []

    def loss(_step, generator):
        x = torch.randn(8, 2, generator=generator)
        return (module(x) - x.sum(1, keepdim=True) - 1).square().mean()

    def watch(step):
        seen.append((step, module.weight.detach().clone()))
        return {"score": step / 300}

    average = train(module, loss, schedule, tmp_path, watch=watch)
    torch.testing.assert_close(module.weight, torch.ones(1, 2), atol=1e-2, rtol=0)
    assert [step for step, _ in seen] == [150, 300]
    kept = load_file(tmp_path / "ema-000150.safetensors")
    assert torch.equal(kept["weight"], seen[0][1])  # what is watched is what is kept
    assert torch.equal(average["weight"], seen[1][1])
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.01 * losses[0]
    assert [line["score"] for line in lines if "score" in line] == [0.5, 1.0]


def test_the_rate_rises_stays_and_falls():
    schedule = Schedule(steps=100, batch=1, lr=2.0, warmup=10, cooldown=0.2)
    assert schedule.lr_at(0) == pytest.approx(0.2)
    assert schedule.lr_at(50) == 2.0
    assert schedule.lr_at(99) == pytest.approx(0.1)
    longer = replace(schedule, steps=1000)
    assert all(longer.lr_at(step) == schedule.lr_at(step) for step in range(80))


def test_wilson_agrees_with_scipy():
    from scipy.stats import binomtest

    for successes, n in ((0, 10), (7, 10), (312, 400), (400, 400)):
        interval = binomtest(successes, n).proportion_ci(method="wilson")
        assert wilson(successes, n) == pytest.approx((interval.low, interval.high), abs=1e-6)
    assert wilson(0, 0) == (0.0, 1.0)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match="unet"):
        export.export(tmp_path)
    with pytest.raises(InputError, match="export"):
        write_cards(tmp_path)
    with pytest.raises(InputError, match="unet"):
        lora.strong_weights("unet", tmp_path)

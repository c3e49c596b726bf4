"""Published settings by name: each is read, costs what its paper says, says what it needs."""

from __future__ import annotations

import re

import pytest
import tiny
from model_folders import model_folder

from w2sdiff import Checkpoint, Guidance, InputError, Lora, Prompt, Window, ZigZag, preset, shapes
from w2sdiff.cli import main
from w2sdiff.edits import EDITS
from w2sdiff.generate import PRESETS, SCHEDULERS
from w2sdiff.generate.presets import PLACE, Preset
from w2sdiff.methods import METHODS, ROLES, from_json

# Single-branch evaluations of the published number of steps, counted by hand: steps that reflect
# times evaluations of the pair, and two for every step.
COSTS = {
    "w2sd/sd15-checkpoint": 49 * 2 + 100,
    "w2sd/sdxl-checkpoint": 49 * 2 + 100,
    "w2sd/sdxl-lora": 49 * 2 + 100,
    "w2sd/sdxl-lora-script": 49 * 3 + 100,
    "w2sd/sd15-lora": 49 * 2 + 100,
    "w2sd/dit-moe": 49 * 4 + 100,
    "w2sd/sdxl-guidance": 49 * 3 + 100,
    "w2sd/sd15-guidance": 49 * 3 + 100,
    "w2sd/sdxl-prompt": 49 * 2 + 100,
    "w2sd/controlnet": 49 * 4 + 100,
    "w2sd/ip-adapter": 49 * 4 + 100,
    "w2sd/sdxl-checkpoint-guidance": 49 * 3 + 100,
    "z-sampling/sdxl": 49 * 3 + 100,
    "z-sampling/sdxl-equal-time": 12 * 3 + 50,
}


def kinds_of(published: Preset) -> set[str]:
    texts = [published.options[role] for role in ROLES if role in published.options]
    return {kind for text in texts for kind in re.findall(r"(?:^|,)([\w-]+)[:=]", text)}


def made(published: Preset, **options):
    missing = kinds_of(published) - set(EDITS)
    if missing:
        pytest.skip(f"there is no edit {', '.join(sorted(missing))}")
    if "core2" in published.method:
        options["noise_model"] = shapes.noise_model_path("shapes-unet")
    for role in ROLES:
        if PLACE in published.options.get(role, ""):
            file = shapes.weak_path("shapes-unet")
            options[role] = published.options[role].replace(PLACE, str(file))
    return published.make(**options)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_its_method_and_names_its_source(name):
    published = preset(name)
    method = made(published)
    assert published.name == name
    assert isinstance(method, METHODS[published.method])
    assert re.search(r"arXiv \d{4}\.\d{5}|xie-lab-ml/", published.source)
    assert published.settings.get("scheduler", "ddim") in SCHEDULERS
    assert published.model


@pytest.mark.parametrize("name", COSTS)
def test_a_preset_costs_what_its_settings_say(name):
    method = made(preset(name))
    assert method.cost(**preset(name).call) == COSTS[name]


def test_every_published_run_with_settings_is_counted():
    unset = {"w2sd/hidream-experts", "w2sd/animatediff"}  # the number of steps is the pipeline's
    core2 = {name for name in PRESETS if "core2" in name}
    assert set(COSTS) | unset | core2 == set(PRESETS)


def test_the_scales_of_the_papers():
    cond = Guidance(1.0)
    lora = preset("w2sd/sdxl-lora").make()
    assert lora.strong == cond | Lora("moreart", 0.8)
    assert lora.weak == cond | Lora("moreart", -1.5)
    assert list(lora.base) == [Lora("moreart", 0.8)]
    script = preset("w2sd/sdxl-lora-script").make()
    assert script.strong == Guidance(5.5) | Lora("moreart", 1.5)
    assert (script.weak, script.base) == (lora.weak, lora.base)
    pair = preset("w2sd/sd15-checkpoint").make()
    weak = Checkpoint("stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert [str(edit.source) for edit in pair.weak if isinstance(edit, Checkpoint)] == [weak.source]
    words = preset("w2sd/sdxl-prompt").make()
    assert list(words.base) == [Prompt("@refined")]
    zigzag = preset("z-sampling/sdxl").make(inversion="reference", window="0:0.5")
    assert zigzag == ZigZag(Guidance(5.5), Guidance(0.0), None, Window(0, 0.5), 1, "reference")
    assert preset("z-sampling/sdxl-equal-time").make().window.count(25) == 12


def test_what_is_given_takes_the_place_of_what_was_published():
    other = preset("w2sd/sdxl-lora").make(weak=Guidance(1.0), times=2)
    assert list(other.weak) == [Guidance(1.0)]
    assert other.times == 2
    assert other.strong == preset("w2sd/sdxl-lora").make().strong


def test_what_a_preset_needs_is_said_before_anything_runs():
    with pytest.raises(InputError, match=r"UNetMotionModel.*make\(weak=\.\.\.\)"):
        preset("w2sd/animatediff").make()
    with pytest.raises(InputError, match=r"published noise model.*make\(noise_model=\.\.\.\)"):
        preset("core2/sdxl").make()
    with pytest.raises(InputError, match="w2sd/sdxl-lora"):
        preset("w2sd/sdxl-lore")


def test_an_option_that_the_method_does_not_have_is_refused():
    with pytest.raises(InputError, match=r"Unknown option of w2sd 'windw'.*'window'"):
        preset("w2sd/sdxl-guidance").make(windw="0:0.5")
    with pytest.raises(InputError, match=r"Unknown option of w2sd 'foo'\. Known: .*strong"):
        preset("w2sd/sdxl-guidance").make(foo=1)


def test_a_method_made_of_a_preset_has_a_json_form():
    method = preset("z-sampling/sdxl").make()
    assert from_json(method.to_json()) == method


def test_the_scheduler_is_the_published_one_with_the_settings_of_the_pipelines_own():
    pipe = tiny.build("sd")
    before = pipe.scheduler
    ddim = preset("w2sd/sd15-guidance").scheduler(pipe)
    assert type(ddim).__name__ == SCHEDULERS["ddim"]
    assert ddim.config.beta_schedule == before.config.beta_schedule
    assert pipe.scheduler is before
    assert preset("w2sd/hidream-experts").scheduler(pipe) is before


def refused(capsys, *words: str) -> str:
    assert main(["generate", "a red circle", "--device", "cpu", *words]) == 2
    return capsys.readouterr().err


def test_the_command_line_says_what_to_get(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out = ("--out", str(tmp_path / "out"))
    model = ("--model", str(model_folder("sd", weak=True, lora=True)))
    told = refused(capsys, *out, "--preset", "w2sd/sdxl-checkpoint")
    assert "is for Juggernaut-XL: give its folder, or hub id, with --model" in told
    told = refused(capsys, *out, *model, "--preset", "w2sd/sdxl-lora")
    assert "civitai.com/models/124347" in told
    assert "--lora moreart=FILE" in told
    told = refused(capsys, *out, *model, "--preset", "w2sd/animatediff")
    assert "--weak guidance=1,checkpoint=FOLDER" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["w2sd/ip-adapter", "w2sd/controlnet", "w2sd/dit-moe"])
@pytest.mark.parametrize("model", ["shapes-unet", "shapes-dit"])
def test_a_preset_on_a_model_that_lacks_what_it_needs(name, model, capsys, tmp_path):
    out = tmp_path / "out"
    for more in ((), ("--dry-run",)):
        told = refused(capsys, "--out", str(out), "--preset", name, "--model", model, *more)
        assert len(told.splitlines()) == 1, "nothing is announced"
        assert f"the preset {name} needs {preset(name).needs}" in told
        assert "--model" in told or "--ip-adapter" in told
    assert not out.exists()


def test_the_preset_for_experts_takes_a_mixture_of_experts(capsys, tmp_path):
    words = ["generate", "a red circle", "--model", str(model_folder("hidream")), "--dry-run"]
    assert main([*words, "--preset", "w2sd/dit-moe", "--out", str(tmp_path)]) == 0
    assert "50 steps, 296 evaluations" in capsys.readouterr().err


def test_a_preset_on_the_command_line_and_what_is_said_beside_it(capsys, tmp_path):
    model = model_folder("sd", weak=True, lora=True)
    words = ["generate", "a red circle", "--model", str(model), "--device", "cpu", "--dry-run"]
    words += ["--out", str(tmp_path), "--preset", "w2sd/sdxl-guidance"]
    assert main(words) == 0
    assert "50 steps, 247 evaluations" in capsys.readouterr().err
    assert main([*words, "--steps", "10", "--weak", "guidance=1"]) == 0
    assert "10 steps, 47 evaluations" in capsys.readouterr().err


def test_the_list_names_models_sources_and_needs(capsys):
    assert main(["list", "presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(PRESETS)
    [line] = [line for line in lines if line.startswith("w2sd/sdxl-lora ")]
    for words in ("stabilityai/stable-diffusion-xl-base-1.0", "tables 10 and 11", "civitai.com"):
        assert words in line

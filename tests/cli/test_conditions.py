"""Pictures that condition a run: `--control-image`, `--ip-adapter`, and `--image` beside them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from model_folders import ip_adapter_file, model_folder
from PIL import Image

from w2sdiff import IPAdapterScale, Plain
from w2sdiff.cli import main
from w2sdiff.errors import UnsupportedError
from w2sdiff.generate import Recipe, Settings, find_model, image_strength
from w2sdiff.imaging import open_image, read_metadata

FAST = ("--size", "16", "--steps", "5", "--guidance", "3", "--device", "cpu")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def image(tmp_path):
    return picture(tmp_path / "picture.png", 0)


def picture(path, seed, size=16):
    noise = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def draw(out, *words, model, expect=0):
    words = ["generate", "a red circle", "--model", model, "--out", out, *FAST, *words]
    assert main([str(word) for word in words]) == expect


def drawn(out):
    return sorted(Path(out).glob("*.png"))


def pixels(path):
    return np.asarray(Image.open(path))


def announced_and_counted(capsys):
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = {event["event"]: event for event in events}
    return told["plan"]["evaluations"], told["picture"]["evaluations"]


def stock(family, prepare=lambda _pipe: None, **changes):
    """The picture that the stock pipeline makes by itself."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(model_folder(family))
    pipe.set_progress_bar_config(disable=True)
    prepare(pipe)
    size = {"width": 16, "height": 16, "num_inference_steps": 5, "guidance_scale": 3.0}
    generator = torch.Generator("cpu").manual_seed(0)
    return np.asarray(pipe("a red circle", generator=generator, **size | changes).images[0])


def refused(capsys, out, *words, model):
    """What is said; nothing was announced or written."""
    capsys.readouterr()  # what saving the tiny model said
    draw(out, "--json", *words, model=model, expect=2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert not Path(out).exists()
    return captured.err


def rerun_is_identical(path, again):
    return main(["rerun", str(path), "--out", str(again)]) == 0 and (
        again.read_bytes() == path.read_bytes()
    )


# --- ControlNet -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "argument"),
    [
        ("sd-controlnet", "image"),
        ("sdxl-controlnet", "image"),
        ("flux-controlnet", "control_image"),
    ],
)
def test_a_control_image_is_handed_on_under_the_pipelines_own_name(
    family, argument, tmp_path, image
):
    out = tmp_path / "out"
    draw(out, "--method", "plain", "--control-image", image, model=model_folder(family))
    [path] = drawn(out)
    assert np.array_equal(pixels(path), stock(family, **{argument: open_image(image)}))


def test_a_control_image_is_part_of_the_picture_and_its_place_is_not(tmp_path, image, capsys):
    model, out = model_folder("sd-controlnet"), tmp_path / "out"
    words = ("--method", "plain", "--control-image")
    draw(out, *words, image, model=model)
    [first] = drawn(out)
    assert rerun_is_identical(first, tmp_path / "again.png")

    moved = shutil.copy(image, tmp_path / "moved.png")
    draw(out, *words, moved, model=model)
    assert drawn(out) == [first]
    draw(out, *words, picture(tmp_path / "other.png", 1), model=model)
    other = next(path for path in drawn(out) if path != first)
    assert (pixels(other) != pixels(first)).any()

    picture(image, 2)
    capsys.readouterr()
    assert main(["rerun", str(first), "--out", str(tmp_path / "again.png")]) == 1
    assert "another file for control_image" in capsys.readouterr().err


def test_every_picture_of_a_batch_is_conditioned(tmp_path, image):
    words = ("--method", "plain", "--control-image", image, "--count", "2")
    words += ("--ip-adapter", ip_adapter_file(), "--ip-adapter-image", image)
    model = model_folder("sd-controlnet")
    draw(tmp_path / "one", *words, model=model)
    draw(tmp_path / "two", *words, "--batch", "2", model=model)
    for single, batched in zip(drawn(tmp_path / "one"), drawn(tmp_path / "two"), strict=True):
        assert np.abs(pixels(single).astype(int) - pixels(batched).astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        ((), 5),
        (("--image", "start.png"), 3),
        (("--image", "start.png", "--image-strength", "1"), 5),
    ],
)
@pytest.mark.parametrize("family", ["sd-controlnet", "sdxl-controlnet"])
def test_the_steps_of_a_controlled_run_are_announced(
    family, words, steps, tmp_path, image, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "start.png", 3)
    model = model_folder(family)
    draw("out", "--method", "plain", "--json", "--control-image", image, *words, model=model)
    assert announced_and_counted(capsys) == (2 * steps, 2 * steps)


def test_a_picture_to_start_from_is_not_the_controlling_one(tmp_path, image):
    model, out = model_folder("sd-controlnet"), tmp_path / "out"
    start = picture(tmp_path / "start.png", 3)
    draw(out, "--method", "plain", "--control-image", image, "--image", start, model=model)
    from diffusers import StableDiffusionControlNetImg2ImgPipeline

    pipe = StableDiffusionControlNetImg2ImgPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        "a red circle",
        image=open_image(start),
        control_image=open_image(image),
        strength=0.6,
        num_inference_steps=5,
        guidance_scale=3.0,
        width=16,
        height=16,
        generator=torch.Generator("cpu").manual_seed(0),
    ).images[0]
    [path] = drawn(out)
    assert np.array_equal(pixels(path), np.asarray(expected))
    assert rerun_is_identical(path, tmp_path / "again.png")


def test_the_preset_for_a_controlnet_draws_what_it_announces(tmp_path, image, capsys):
    words = ("--preset", "w2sd/controlnet", "--json", "--control-image", image)
    draw(tmp_path / "out", *words, model=model_folder("sd-controlnet"))
    announced, counted = announced_and_counted(capsys)
    assert announced == counted == 5 * 2 + 4 * (2 + 2)


# --- pictures to start from -----------------------------------------------------------------------


def test_a_pipeline_without_a_strength_makes_all_steps(image):
    """FLUX Kontext starts from noise, beside the picture."""
    model = find_model(str(model_folder("flux-kontext")))
    settings = Settings(
        steps=5, guidance=3.0, image=image, image_strength=image_strength(model, image, None)
    )
    assert settings.image_strength is None
    assert Recipe(model, settings, Plain()).steps == 5
    with pytest.raises(UnsupportedError, match="leave out --image-strength"):
        Recipe(model, Settings(steps=5, guidance=3.0, image=image, image_strength=0.5), Plain())


def test_the_pipelines_own_strength_is_announced_where_none_is_given(image):
    settings = Settings(steps=10, guidance=3.0, image=image)
    recipe = Recipe(find_model("shapes-unet"), settings, Plain())
    assert recipe.steps == 8  # StableDiffusionImg2ImgPipeline's default is 0.8


# --- IP-Adapter -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_an_image_prompt_is_what_the_stock_pipeline_makes_of_it(family, tmp_path, image):
    file, out = ip_adapter_file(family), tmp_path / "out"
    words = ("--method", "plain", "--ip-adapter", f"{file}=0.7", "--ip-adapter-image", image)
    draw(out, *words, model=model_folder(family))
    [path] = drawn(out)

    def load(pipe):
        pipe.load_ip_adapter(str(file.parent), subfolder="", weight_name=file.name)
        pipe.set_ip_adapter_scale(0.7)

    expected = stock(family, load, ip_adapter_image=open_image(image))
    assert np.array_equal(pixels(path), expected)
    assert (expected != stock(family)).any()
    assert rerun_is_identical(path, tmp_path / "again.png")


def test_an_image_prompt_at_scale_0_is_none(tmp_path, image):
    file, out = ip_adapter_file(), tmp_path / "out"
    words = ("--method", "plain", "--ip-adapter", f"{file}=0", "--ip-adapter-image", image)
    draw(out, *words, model=model_folder("sd"))
    [path] = drawn(out)
    assert np.array_equal(pixels(path), stock("sd"))


def test_two_adapters_each_look_at_their_picture(tmp_path, image):
    file, out, other = ip_adapter_file(), tmp_path / "out", picture(tmp_path / "other.png", 1)
    two = ("--ip-adapter", f"{file}=0.5", "--ip-adapter-image", image)
    two += ("--ip-adapter", f"{file}=0.3", "--ip-adapter-image", other)
    draw(out, "--method", "plain", *two, model=model_folder("sd"))
    [path] = drawn(out)

    def load(pipe):
        names = [file.name] * 2
        pipe.load_ip_adapter(str(file.parent), subfolder="", weight_name=names)
        pipe.set_ip_adapter_scale([0.5, 0.3])

    pictures = [open_image(image), open_image(other)]
    assert np.array_equal(pixels(path), stock("sd", load, ip_adapter_image=pictures))


def test_what_an_image_prompt_is_made_of_decides_and_its_places_do_not(tmp_path, image, capsys):
    model, out = model_folder("sd"), tmp_path / "out"
    adapter = Path(shutil.copytree(ip_adapter_file().parent, tmp_path / "adapter"))
    file = adapter / ip_adapter_file().name
    words = ("--method", "plain", "--ip-adapter", file, "--ip-adapter-image")
    draw(out, *words, image, model=model)
    [first] = drawn(out)
    said = read_metadata(first)["settings"]["image_prompts"]
    assert said == [{"file": str(file), "image": str(image), "scale": 1.0}]

    here = ("--ip-adapter", ip_adapter_file(), "--ip-adapter-image")
    draw(out, "--method", "plain", *here, shutil.copy(image, tmp_path / "moved.png"), model=model)
    assert drawn(out) == [first]

    draw(out, *words, picture(tmp_path / "other.png", 1), model=model)
    draw(out, "--method", "plain", "--ip-adapter", f"{file}=0.5", *words[-1:], image, model=model)
    encoder = adapter / "image_encoder" / "model.safetensors"
    change(encoder)
    draw(out, *words, image, model=model)
    change(file)
    draw(out, *words, image, model=model)
    assert len({pixels(path).tobytes() for path in drawn(out)}) == len(drawn(out)) == 5

    capsys.readouterr()
    assert main(["rerun", str(first), "--out", str(tmp_path / "again.png")]) == 1
    assert "another file for image_prompts" in capsys.readouterr().err


def change(file):
    from safetensors.torch import load_file, save_file

    save_file({name: -weight for name, weight in load_file(file).items()}, file)


def test_the_preset_for_an_image_prompt_draws_what_it_announces(tmp_path, image, capsys):
    words = ("--preset", "w2sd/ip-adapter", "--json", "--ip-adapter", ip_adapter_file())
    out = tmp_path / "out"
    draw(out, *words, "--ip-adapter-image", image, model=model_folder("sd"))
    announced, counted = announced_and_counted(capsys)
    assert announced == counted == 5 * 2 + 4 * (2 + 2)
    [path] = drawn(out)
    assert rerun_is_identical(path, tmp_path / "again.png")


def test_an_image_prompt_beside_a_picture_to_start_from(tmp_path, image, capsys):
    words = ("--method", "plain", "--json", "--image", image, "--ip-adapter", ip_adapter_file())
    model = model_folder("sd")
    draw(tmp_path / "out", *words, "--ip-adapter-image", image, model=model)
    assert announced_and_counted(capsys) == (6, 6)


# --- what is not there ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "words", "message"),
    [
        ("sd-controlnet", (), "draws under the control .* with --control-image"),
        ("sd-controlnet", ("--image", "x.png"), "--control-image; --image is a picture to start"),
        ("sd", ("--control-image", "x.png"), "StableDiffusionPipeline takes no control image"),
        ("sd", ("--control-image", "none.png"), r"none\.png does not exist"),
        ("sd", ("--weak", "no-control=1"), "needs a pipeline with a ControlNet.* --model"),
        ("sd", ("--weak", "control-scale=0.3"), "needs a pipeline with a ControlNet.* --model"),
        ("sd", ("--weak", "ip-adapter-scale=0"), "file with --ip-adapter .*--ip-adapter-image"),
        ("sd", ("--weak", "experts=bottom"), "UNet2DConditionModel has no gate"),
        ("pixart", ("--weak", "ip-adapter-scale=0"), "PixArtSigmaPipeline does not"),
        ("pixart", ("--image", "x.png"), "no image-to-image form"),
        ("hidream", ("--weak", "experts:bottom=9"), "9 experts are asked for.* has 8"),
        ("sd", ("--ip-adapter", "x.safetensors"), "one --ip-adapter-image for each"),
        ("sd", ("--ip-adapter-image", "x.png"), "one --ip-adapter-image for each"),
    ],
)
def test_what_a_run_would_lack_is_said_before_it_is_announced(
    family, words, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "x.png", 0)
    for more in ((), ("--dry-run",)):
        told = refused(capsys, "out", *words, *more, model=model_folder(family))
        assert re.search(message, told), told


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ("none.safetensors", r"none\.safetensors does not exist"),
        ("x.bin", r"expected a \.safetensors file"),
        ("bare.safetensors=strong", "FILE or FILE=SCALE"),
        ("bare.safetensors=inf", "finite"),
        ("bare.safetensors", "no image encoder: put its folder image_encoder"),
        ("pickled/a.safetensors", "has no safetensors weights"),
        ("empty/a.safetensors", r"it has no config\.json"),
    ],
)
def test_an_adapter_that_is_none(adapter, message, tmp_path, image, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x.bin").touch()
    shutil.copy(ip_adapter_file(), "bare.safetensors")
    for folder in ("pickled", "empty"):
        Path(folder, "image_encoder").mkdir(parents=True)
        shutil.copy("bare.safetensors", f"{folder}/a.safetensors")
    for file in ("config.json", "pytorch_model.bin"):
        Path("pickled/image_encoder", file).touch()
    words = ("--ip-adapter", adapter, "--ip-adapter-image", image)
    told = refused(capsys, "out", *words, model=model_folder("sd"))
    assert re.search(message, told), told


def test_a_file_that_is_no_adapter_is_named(tmp_path, image, capsys):
    adapter = Path(shutil.copytree(ip_adapter_file().parent, tmp_path / "adapter"))
    lora = model_folder("sd", lora=True) / "loras" / "style.safetensors"
    shutil.copy(lora, adapter / "style.safetensors")
    words = ("--ip-adapter", adapter / "style.safetensors", "--ip-adapter-image", image)
    draw(tmp_path / "out", *words, model=model_folder("sd"), expect=2)
    assert re.search(r"style\.safetensors does not fit", capsys.readouterr().err)
    assert drawn(tmp_path / "out") == []


def test_a_scale_for_each_adapter_or_one_for_all(image):
    from w2sdiff.generate import ImagePrompt

    prompts = (ImagePrompt(ip_adapter_file(), image),)
    settings = Settings(steps=5, guidance=3.0, image_prompts=prompts)
    model = find_model(str(model_folder("sd")))
    Recipe(model, settings, Plain(IPAdapterScale(0.3)))
    with pytest.raises(UnsupportedError, match="2 scales are given for 1 IP-Adapters"):
        Recipe(model, settings, Plain(IPAdapterScale((0.3, 0.1))))

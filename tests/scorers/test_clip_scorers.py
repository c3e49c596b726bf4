"""CLIPScore, PickScore, HPSv2 and the aesthetic heads on small random CLIPs."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from tiny_clip import (
    DIM,
    SIZE,
    as_open_clip,
    open_clip_folder,
    pictures,
    plain_image,
    plain_text,
    random_state,
    transformers_folder,
)

from w2sdiff.errors import InputError
from w2sdiff.scorers import SCORERS, Scorer, parse_scorer, scorer_from_json
from w2sdiff.scorers.aesthetic import Aesthetic, affine, load_head
from w2sdiff.scorers.clipscore import ClipScore
from w2sdiff.scorers.hpsv2 import HPSv2, HPSv21
from w2sdiff.scorers.pickscore import PickScore
from w2sdiff.scorers.preprocess import normalise, resize_crop, resize_pad
from w2sdiff.scorers.text import clip_tokeniser

PROMPTS = ["a cat", "a dog in the snow", "two red circles", "", "a cat"]
KINDS = ["clipscore", "plain", "pickscore", "hpsv2", "hpsv2.1", "aesthetic"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("clips")
    head = {"weight": torch.linspace(-1, 1, DIM)[None], "bias": torch.tensor([5.0])}
    save_file(head, root / "head.safetensors")
    return {
        "open_clip": open_clip_folder(root / "open_clip"),
        "other": open_clip_folder(root / "other", seed=1),
        "transformers": transformers_folder(root / "transformers"),
        "head": root / "head.safetensors",
    }


def make(kind: str, folders: dict[str, Path], clip: str = "open_clip") -> Scorer:
    folder = str(folders[clip])
    return {
        "clipscore": lambda: ClipScore(model=folder),
        "plain": lambda: ClipScore(model=folder, form="plain", prefix="A photo depicts"),
        "pickscore": lambda: PickScore(weights=folder),
        "hpsv2": lambda: HPSv2(weights=folder),
        "hpsv2.1": lambda: HPSv21(weights=folder, antialias=True),
        "aesthetic": lambda: Aesthetic(head=str(folders["head"]), model=folder),
    }[kind]()


@pytest.fixture(params=KINDS)
def scorer(request, folders) -> Scorer:
    return make(request.param, folders)


def test_scores_do_not_depend_on_batch_or_order(scorer):
    images = pictures(5)
    scores = scorer.score(images, PROMPTS)
    assert scores.dtype == np.float32
    assert scores.shape == (5,)
    assert len(set(scores.tolist())) > 2  # the paper's form makes what is below 0 equal
    alone = [scorer.score([i], [p])[0] for i, p in zip(images, PROMPTS, strict=True)]
    np.testing.assert_allclose(alone, scores, atol=1e-4 * np.abs(scores).max(), rtol=0)
    turned = scorer.score(images[::-1], PROMPTS[::-1])
    np.testing.assert_allclose(turned[::-1], scores, atol=1e-4 * np.abs(scores).max(), rtol=0)
    assert np.array_equal(scorer.score(images, PROMPTS), scores)


def test_nothing_gives_nothing(scorer):
    found = scorer.score([], [])
    assert found.shape == (0,)
    assert found.dtype == np.float32


def test_close_frees_and_the_next_score_loads_again(scorer):
    before = scorer.score(pictures(1), ["a"])
    assert "_clip" in scorer.__dict__
    scorer.close()
    assert not {"_clip", "_files", "_head"} & set(scorer.__dict__)
    assert np.array_equal(scorer.score(pictures(1), ["a"]), before)


def test_another_device_lets_go_of_what_was_loaded(scorer):
    scorer.score(pictures(1), ["a"])
    scorer.to("cpu")
    assert "_clip" in scorer.__dict__
    scorer.to("meta")
    assert "_clip" not in scorer.__dict__
    assert scorer.device == "meta"


def test_json_and_text_give_the_scorer_back(scorer):
    assert scorer_from_json(json.loads(json.dumps(scorer.to_json()))) == scorer
    assert parse_scorer(scorer.to_text()) == scorer


def test_prompts_are_asked_for(scorer):
    if scorer.needs_prompt:
        with pytest.raises(InputError, match="needs the prompts"):
            scorer.score(pictures(1))
    else:
        assert np.array_equal(scorer.score(pictures(1)), scorer.score(pictures(1), ["a"]))
    with pytest.raises(InputError, match="one prompt per picture"):
        scorer.score(pictures(2), ["a"])


def test_every_kind_of_picture_is_scored(scorer):
    picture = pictures(1)[0]
    kinds = [picture.convert(m) for m in ("RGB", "RGBA", "L", "LA", "CMYK")] + [
        picture.quantize(255)
    ]
    scores = scorer.score(kinds, ["a"] * 6)
    assert np.isfinite(scores).all()
    assert scores[1] == pytest.approx(scores[0], abs=1e-4)
    assert scores[2] == pytest.approx(scores[3], abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_fingerprint_names_content_and_no_place(kind, folders, tmp_path):
    scorer = make(kind, folders)
    text = json.dumps(scorer.fingerprint())
    assert str(folders["open_clip"].parent) not in text
    assert str(folders["open_clip"].parent) not in scorer.name
    assert "_clip" not in scorer.__dict__  # nothing is loaded for it
    assert set(scorer.fingerprint()) >= {"scorer", "weights", "preprocessing", "dtype", "formula"}
    assert make(kind, folders, "other").recipe() != scorer.recipe()


def test_every_deciding_option_changes_the_recipe(folders):
    clip = str(folders["open_clip"])
    recipes = [
        s.recipe()
        for s in (
            ClipScore(model=clip),
            ClipScore(model=clip, form="plain"),
            ClipScore(model=clip, prefix="A photo depicts"),
            ClipScore(model=str(folders["transformers"])),
            HPSv2(weights=clip),
            HPSv2(weights=clip, antialias=True),
            HPSv21(weights=clip),
            PickScore(weights=str(folders["transformers"])),
            Aesthetic(head=str(folders["head"]), model=clip),
        )
    ]
    assert len(set(recipes)) == len(recipes)


def test_clipscore_is_its_formula(folders):
    state, images = random_state(), pictures(4)
    pixels = torch.stack([normalise(resize_crop(i, SIZE)) for i in images])
    seen = plain_image(state, pixels)

    def cosines(prompts):
        return (seen * plain_text(state, clip_tokeniser(77).encode(prompts))).sum(-1).numpy()

    prompts = PROMPTS[:4]
    plain = ClipScore(model=str(folders["open_clip"]), form="plain").score(images, prompts)
    np.testing.assert_allclose(plain, 100 * cosines(prompts), atol=1e-3)
    assert plain.min() < 0 < plain.max()
    paper = ClipScore(model=str(folders["open_clip"]), prefix="A photo depicts")
    wanted = 2.5 * np.maximum(cosines([f"A photo depicts {p}" for p in prompts]), 0)
    np.testing.assert_allclose(paper.score(images, prompts), wanted, atol=3e-5)
    assert paper.tokens(["a cat"]) == [2 + 2 + 3]
    with pytest.raises(InputError, match="form=paper or form=plain"):
        ClipScore(form="torchmetrics")


def test_pickscore_is_its_formula(folders):
    state = as_open_clip(load_file(folders["transformers"] / "model.safetensors"))
    images = pictures(5)
    pixels = torch.stack([normalise(resize_crop(i, SIZE, crop="down")) for i in images])
    ids = clip_tokeniser(77).encode(PROMPTS)
    cosines = plain_image(state, pixels, quick_gelu=True) * plain_text(state, ids, quick_gelu=True)
    wanted = state["logit_scale"].exp() * cosines.sum(-1)
    found = PickScore(weights=str(folders["transformers"])).score(images, PROMPTS)
    np.testing.assert_allclose(found, wanted, atol=1e-3)


@pytest.mark.parametrize("antialias", [False, True])
def test_hpsv2_is_its_formula(folders, antialias):
    state, images = random_state(), pictures(5, (80, 50))
    pixels = [normalise(resize_pad(i, SIZE, antialias=antialias)) for i in images]
    ids = clip_tokeniser(77).encode(PROMPTS)
    wanted = 100 * (plain_image(state, torch.stack(pixels)) * plain_text(state, ids)).sum(-1)
    found = HPSv2(weights=str(folders["open_clip"]), antialias=antialias).score(images, PROMPTS)
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_hpsv2_recipes_differ(folders):
    noise = np.random.default_rng(0).integers(0, 256, (3, 90, 90, 3), np.uint8)
    images = [Image.fromarray(n) for n in noise]
    plain, smooth = (
        HPSv2(weights=str(folders["open_clip"]), antialias=a).score(images, PROMPTS[:3])
        for a in (False, True)
    )
    assert np.abs(plain - smooth).min() > 0.1


def test_scores_are_on_no_grid_of_sixteen_bits(folders):
    scores = HPSv2(weights=str(folders["open_clip"])).score(pictures(5), PROMPTS)
    steps = scores.astype(np.float64) / 100 * 4096
    assert (np.abs(steps - steps.round()) > 1e-3).sum() >= 4


def test_hpsv2_sees_the_edges_and_the_others_the_middle(folders):
    image = pictures(1, (96, 32))[0]
    marked = image.copy()
    ImageDraw.Draw(marked).rectangle((0, 0, 20, 31), fill="white")
    for kind in KINDS:
        one, two = make(kind, folders).score([image, marked], ["a", "a"])
        assert (abs(one - two) > 1e-3) == kind.startswith("hpsv2"), kind


def test_the_published_file_is_vit_h_14(tmp_path):
    file = tmp_path / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": {"x": torch.ones(1)}}, file)
    files = HPSv21(weights=str(tmp_path), sha256=None)._files
    assert files.weights == file
    assert files.config["vision_cfg"] | {"layers": 32, "width": 1280} == files.config["vision_cfg"]
    assert not files.config.get("quick_gelu")
    assert (files.image_size, files.context, files.tokenizer) == (224, 77, None)
    with pytest.raises(InputError, match=r"has no HPS_v2_compressed\.pt"):
        HPSv2(weights=str(tmp_path)).fingerprint()
    with pytest.raises(InputError, match="another file"):
        HPSv21(weights=str(tmp_path), sha256="0" * 64).fingerprint()


@pytest.mark.parametrize("kind", ["clipscore", "pickscore", "hpsv2", "hpsv2.1", "aesthetic"])
def test_without_its_weights_a_scorer_says_what_to_do(kind, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"is not here.*--download"):
        SCORERS[kind]().fingerprint()


# The heads: real weights, from the folder beside the repository.


@pytest.fixture(scope="module")
def heads() -> Path:
    folder = SHARED / "data" / "aesthetic"
    if not folder.is_dir():
        pytest.skip(f"no aesthetic heads at {folder}; a clone does not hold them")
    return folder


@pytest.mark.parametrize(
    ("file", "version"),
    [
        ("sac+logos+ava1-l14-linearMSE.pth", "v2"),
        ("laion_v2_affine_vit_l_14.jsonl", "v2"),
        ("laion_v1_linear_vit_l_14.jsonl", "v1"),
    ],
)
def test_heads_on_the_published_embeddings(heads, file, version):
    lines = (heads / "golden_vit_l_14_embeddings.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "embedding" in row]
    assert len(rows) == 10
    weight, bias = load_head(heads / file)
    seen = torch.tensor([row["embedding"] for row in rows], dtype=torch.float64)
    found = (seen @ weight + bias).numpy()
    np.testing.assert_allclose(found, [row[f"expected_{version}"] for row in rows], atol=1e-5)
    assert (np.diff(found) > 0).all()


def test_the_affine_form_is_the_published_stack(heads):
    file = heads / "sac+logos+ava1-l14-linearMSE.pth"
    state = torch.load(file, weights_only=True, map_location="cpu")
    sizes = [768, 1024, 128, 64, 16, 1]
    stack = torch.nn.Sequential()
    for number, (into, out) in zip((0, 2, 4, 6, 7), pairwise(sizes), strict=True):
        stack.add_module(str(number), torch.nn.Linear(into, out))
    stack.load_state_dict({k.removeprefix("layers."): v for k, v in state.items()})
    x = torch.nn.functional.normalize(torch.randn(50, 768, dtype=torch.float64), dim=-1)
    weight, bias = affine(state)
    torch.testing.assert_close(x @ weight + bias, stack.double()(x)[:, 0], atol=1e-12, rtol=0)
    sixteen = stack.half()(x.half())[:, 0].double()
    assert (sixteen - (x @ weight + bias)).abs().max() > 1e-4  # what the float64 form avoids


def test_aesthetic_is_the_head_of_the_unit_features(folders):
    scorer = Aesthetic(head=str(folders["head"]), model=str(folders["open_clip"]))
    pixels = torch.stack([normalise(resize_crop(i, SIZE)) for i in pictures(5)])
    wanted = plain_image(random_state(), pixels) @ torch.linspace(-1, 1, DIM) + 5
    np.testing.assert_allclose(scorer.score(pictures(5)), wanted, atol=1e-5)


def test_a_head_of_another_clip_is_refused(folders, tmp_path):
    save_file({"weight": torch.ones(1, 768), "bias": torch.ones(1)}, tmp_path / "h.safetensors")
    scorer = Aesthetic(head=str(tmp_path / "h.safetensors"), model=str(folders["open_clip"]))
    with pytest.raises(InputError, match=f"reads 768 numbers.*gives {DIM}"):
        scorer.score(pictures(1))


@pytest.mark.parametrize(
    "state",
    [
        {"weight": torch.ones(2, 3), "bias": torch.ones(2)},
        {"weight": torch.ones(1, 3)},
        {"0.weight": torch.ones(4, 3), "0.bias": torch.ones(4), "1.weight": torch.ones(1, 5)},
        {},
    ],
)
def test_what_is_no_head_is_refused(state):
    with pytest.raises(InputError, match="the head"):
        affine(state)


@pytest.mark.parametrize("text", ["{", '{"name": "weight"}', '["x"]', ""])
def test_broken_json_lines_are_refused(tmp_path, text):
    (tmp_path / "h.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"h\.jsonl"):
        load_head(tmp_path / "h.jsonl")


def test_the_first_head_has_to_be_named_by_file():
    with pytest.raises(InputError, match="head=FILE"):
        Aesthetic(head="v1").fingerprint()

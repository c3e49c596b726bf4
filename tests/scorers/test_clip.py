"""One CLIP over open_clip and transformers, against CLIP written out in plain torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_clip import (
    SIZE,
    as_open_clip,
    config,
    open_clip_folder,
    pictures,
    plain_image,
    plain_text,
    random_state,
    transformers_folder,
)

from w2sdiff.errors import InputError
from w2sdiff.jobs import file_sha256
from w2sdiff.scorers.clip import load_clip
from w2sdiff.scorers.clip_files import ClipFiles, find_clip
from w2sdiff.scorers.preprocess import normalise, resize_crop
from w2sdiff.scorers.text import clip_tokeniser
from w2sdiff.shapes import checkpoint_path

PROMPTS = ["a photo of a cat", "", "Zwölf Boxkämpfer & 3 emus 🦤", "word " * 200]
LONG = ["castle " * 90 + "in the rain", "river " * 90 + "at night"]


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=3e-6, rtol=0)


@pytest.fixture(scope="module", params=["open_clip", "open_clip quick", "transformers"])
def loaded(request, tmp_path_factory):
    """A CLIP, its weights under open_clip's names, and whether it has QuickGELU."""
    folder = tmp_path_factory.mktemp("clip")
    quick = request.param != "open_clip"
    if request.param == "transformers":
        state = as_open_clip(load_file(transformers_folder(folder) / "model.safetensors"))
    else:
        open_clip_folder(folder, quick_gelu=quick)
        state = random_state()
    return load_clip(find_clip(str(folder))), state, quick


def test_pictures_are_read_as_clip_is_written_down(loaded):
    clip, state, quick = loaded
    pixels = torch.stack([normalise(resize_crop(p, SIZE)) for p in pictures()])
    close(clip.image_features(pictures()), plain_image(state, pixels, quick_gelu=quick))


def test_prompts_are_read_as_clip_is_written_down(loaded):
    clip, state, quick = loaded
    ids = clip_tokeniser(77).encode(PROMPTS)
    close(clip.text_features(PROMPTS), plain_text(state, ids, quick_gelu=quick))


def test_the_wrong_gelu_would_show(loaded):
    clip, state, quick = loaded
    pixels = torch.stack([normalise(resize_crop(p, SIZE)) for p in pictures()])
    other = plain_image(state, pixels, quick_gelu=not quick)
    assert (clip.image_features(pictures()) - other).abs().max() > 1e-3


def test_the_end_mark_stays_when_a_prompt_is_cut(loaded):
    clip, *_ = loaded
    one, two = clip.text_features(LONG)
    assert one @ two < 0.999  # without the mark both would be read at the same place: 1
    assert clip.words.count(LONG) == [95, 94]
    ids = clip.words.encode(LONG)
    assert ids.shape == (2, 77)
    assert ids[:, -1].tolist() == [49407, 49407]
    start = clip.text_features(["castle " * 90 + "is something else entirely"])[0]
    close(one, start)  # what is cut away is not read


def test_features_do_not_depend_on_the_batch(loaded, monkeypatch):
    clip, *_ = loaded
    images = pictures(7)
    whole = clip.image_features(images)
    close(torch.cat([clip.image_features([image]) for image in images]), whole)
    monkeypatch.setattr("w2sdiff.scorers.clip.BATCH", 3)
    close(clip.image_features(images[::-1]), whole.flip(0))
    words = [f"prompt {n}" for n in range(5)]
    close(clip.text_features([*words, words[0]])[[5, 1]], clip.text_features(words)[[0, 1]])


def test_batches_halve_when_memory_runs_out(loaded):
    clip, *_ = loaded
    sizes = []

    def prepare(image):
        sizes.append(image)
        if len(sizes) in (6, 15):  # in the middle of a batch, twice
            raise torch.OutOfMemoryError("too many")
        return clip.prepare(image)

    images = pictures(10)
    close(clip.image_features(images, prepare), clip.image_features(images))
    assert len(sizes) > len(images)

    def never(image):
        raise torch.OutOfMemoryError("too many even if one")

    with pytest.raises(torch.OutOfMemoryError):
        clip.image_features(images, never)


def test_the_published_open_clip_weights_of_openai_have_quick_gelu(tmp_path, monkeypatch):
    """Stock open_clip reads the same file with GELU, silently, where it is given as a file."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--timm--vit_base_patch32_clip_224.openai"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    folder = repository / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    save_file({"x": torch.ones(1)}, folder / "open_clip_model.safetensors")
    files = find_clip("ViT-B-32", pretrained="openai")
    assert files.config["quick_gelu"] is True
    assert files.config["vision_cfg"]["patch_size"] == 32
    assert files.tokenizer is None
    with pytest.raises(InputError, match=r"ViT-B-32.*pretrained=openai"):
        find_clip("ViT-B-32")
    with pytest.raises(InputError, match=r"has no weights 'nonsense'.*openai"):
        find_clip("ViT-B-32", pretrained="nonsense")
    with pytest.raises(InputError, match="no model 'ViT-B-33'"):
        find_clip("ViT-B-33", pretrained="openai")


def test_published_pickles_of_open_clip_names_load_into_open_clip(tmp_path):
    file = tmp_path / "HPS_small.pt"
    torch.save({"state_dict": {k: v.half() for k, v in random_state().items()}}, file)
    files = ClipFiles("open_clip", config(), file, sha256=file_sha256(file))
    clip = load_clip(files)
    state = {k: v.half().float() for k, v in random_state().items()}
    pixels = torch.stack([normalise(resize_crop(p, SIZE)) for p in pictures()])
    close(clip.image_features(pictures()), plain_image(state, pixels))
    assert clip.logit_scale == pytest.approx(torch.tensor(4.6).half().float().exp().item())


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_weights_that_do_not_fit_are_refused(tmp_path, change):
    folder = open_clip_folder(tmp_path / "c")
    state = random_state()
    if change == "missing":
        del state["visual.proj"]
    elif change == "extra":
        state["head"] = torch.ones(1)
    else:
        state["visual.proj"] = torch.ones(3, 3)
    save_file(state, folder / "open_clip_model.safetensors")
    with pytest.raises(InputError, match=r"open_clip_model\.safetensors does not fit"):
        load_clip(find_clip(str(folder)))


def test_what_is_no_clip_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    with pytest.raises(InputError, match=r"expected a CLIP.*siglip"):
        find_clip(str(tmp_path))
    with pytest.raises(InputError, match=r"cannot read config\.json"):
        find_clip(str(tmp_path.parent))
    squash = open_clip_folder(tmp_path / "squash")
    text = json.dumps({"model_cfg": config(), "preprocess_cfg": {"resize_mode": "squash"}})
    (squash / "open_clip_config.json").write_text(text)
    with pytest.raises(InputError, match="resizes its pictures by 'squash'"):
        find_clip(str(squash))


def test_a_tokenizer_of_its_own_is_used_and_keeps_the_end_mark():
    folder = Path(checkpoint_path("shapes-unet")) / "tokenizer"
    words = clip_tokeniser(16, folder)
    assert words.count(["a red circle", "a red circle left of a blue square"]) == [5, 10]
    ids = words.encode(["a red circle " * 20, "a red circle"])
    end = words.padding
    assert ids.shape == (2, 16)
    assert ids[0, -1] == end
    assert end not in ids[0, :-1]
    assert ids[1].tolist().index(end) == 4


def test_identity_is_the_content_not_the_place(tmp_path):
    one, two = open_clip_folder(tmp_path / "a"), open_clip_folder(tmp_path / "b")
    first = find_clip(str(one)).identity()
    assert first == find_clip(str(two)).identity()
    assert str(tmp_path) not in json.dumps(first)
    others = [
        open_clip_folder(tmp_path / "c", seed=1),
        open_clip_folder(tmp_path / "d", quick_gelu=True),
        transformers_folder(tmp_path / "e"),
    ]
    identities = [json.dumps(find_clip(str(folder)).identity()) for folder in [one, *others]]
    assert len(set(identities)) == 4

from __future__ import annotations

import dataclasses
import io
import itertools

import numpy as np
import pytest
from PIL import Image, ImageDraw

from w2sdiff.errors import InputError
from w2sdiff.shapes.oracle import frequencies, judge, judge_all, look, look_all
from w2sdiff.shapes.world import (
    BACKGROUND,
    COLOURS,
    COUNTS,
    IMAGE_SIZE,
    RELATIONS,
    RGB,
    SHAPES,
    Caption,
    Object,
    Scene,
    batch,
    evaluation_captions,
    is_held_out,
    parse,
    render,
    sample_caption,
    sample_scene,
)

AMOUNTS = [400, pytest.param(2000, marks=pytest.mark.slow)]


def true_scenes(n: int, seed: int = 100) -> tuple[list[Caption], list[Scene]]:
    """Captions with scenes that obey them; one in five of a held-out combination."""
    captions, scenes = [], []
    for index in range(n):
        rng = np.random.default_rng((seed, index))
        captions.append(sample_caption(rng, held_out=index % 5 == 0))
        scenes.append(sample_scene(captions[-1], rng))
    return captions, scenes


def accepted(images, captions) -> float:
    return float(np.mean([v.obeyed for v in judge_all(images, captions)]))


# What it must accept.


@pytest.mark.parametrize("n", AMOUNTS)
def test_true_renders_are_accepted(n):
    captions, scenes = true_scenes(n)
    assert accepted(render(scenes), captions) >= 0.995


def halve(image, _):
    small = Image.fromarray(image).resize((IMAGE_SIZE // 2,) * 2, Image.Resampling.BICUBIC)
    return np.asarray(small.resize((IMAGE_SIZE,) * 2, Image.Resampling.BICUBIC))


def compress(image, _):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=60)
    return np.asarray(Image.open(file))


def grain(image, rng):
    return np.clip(image + rng.normal(0, 8, image.shape), 0, 255).round().astype(np.uint8)


def all_three(image, rng):
    return grain(compress(halve(image, rng), rng), rng)


@pytest.mark.parametrize("harm", [halve, compress, grain, all_three])
def test_slightly_spoilt_pictures_are_accepted(harm):
    captions, scenes = true_scenes(200)
    rng = np.random.default_rng(0)
    assert accepted([harm(i, rng) for i in render(scenes)], captions) >= 0.98


@pytest.mark.parametrize("spoilt", [False, True])
def test_objects_are_read_where_they_are_and_as_large_as_they_are(spoilt):
    _, scenes = true_scenes(200)
    images = render(scenes)
    if spoilt:
        images = np.stack([halve(i, None) for i in images])
    for scene, reading in zip(scenes, look_all(images), strict=True):
        assert len(reading.objects) == len(scene.objects)
        for o in scene.objects:
            seen = min(reading.objects, key=lambda s: np.hypot(s.x - o.x, s.y - o.y))
            assert (seen.shape, seen.colour) == (o.shape, o.colour)
            assert max(abs(seen.x - o.x), abs(seen.y - o.y)) < 0.5
            assert abs(seen.size - o.size) < (1.0 if spoilt else 0.5)
            assert 0 < seen.confidence <= 1


def test_pictures_may_come_as_pil_images_and_captions_as_text():
    image = render(Scene((Object("circle", "red", 32, 32, 20),)))[0]
    assert judge(Image.fromarray(image), "a red circle")
    assert judge(image, parse("a circle"))
    assert look(Image.fromarray(image).convert("RGBA")) == look(image)


# What it must refuse.


def altered(caption: Caption, rng: np.random.Generator) -> Caption | None:
    """The caption with exactly one named attribute changed to another value."""
    demands, options = caption.demands, []
    if caption.relation:
        options += [dataclasses.replace(caption, relation=r) for r in RELATIONS]
    if caption.category == "counting":
        options += [dataclasses.replace(caption, demands=demands[:1] * n) for n in COUNTS.values()]
    for place, (field, values) in itertools.product(
        range(len(demands)), (("shape", SHAPES), ("colour", COLOURS))
    ):
        if getattr(demands[place], field) is None:
            continue
        for value in values:
            changed = dataclasses.replace(demands[place], **{field: value})
            new = [changed if i == place else d for i, d in enumerate(demands)]
            new = [changed] * len(demands) if caption.category == "counting" else new
            options.append(dataclasses.replace(caption, demands=tuple(new)))
    options = [o for o in options if o != caption]
    return options[rng.integers(len(options))] if options else None


@pytest.mark.parametrize("n", AMOUNTS)
def test_captions_altered_in_one_attribute_are_refused(n):
    captions, scenes = true_scenes(n)
    rng = np.random.default_rng(0)
    pairs = [(s, altered(c, rng)) for c, s in zip(captions, scenes, strict=True)]
    pairs = [(s, c) for s, c in pairs if c is not None]
    assert len(pairs) > 0.95 * n
    assert accepted(render([s for s, _ in pairs]), [c for _, c in pairs]) <= 0.01


@pytest.mark.parametrize("n", AMOUNTS)
def test_pictures_with_an_object_removed_are_refused(n):
    captions, scenes = true_scenes(n)
    fewer = [dataclasses.replace(s, objects=s.objects[1:]) for s in scenes]
    assert accepted(render(fewer), captions) <= 0.01


@pytest.mark.parametrize("n", AMOUNTS)
def test_pictures_with_an_object_added_are_refused(n):
    captions, scenes = true_scenes(n)
    rng = np.random.default_rng(0)
    extra = [stranger(s, rng) for s in scenes]
    more = [
        (dataclasses.replace(s, objects=(*s.objects, e)), c)
        for s, c, e in zip(scenes, captions, extra, strict=True)
        if e is not None
    ]
    assert len(more) > 0.9 * n
    assert accepted(render([s for s, _ in more]), [c for _, c in more]) <= 0.01


def stranger(scene: Scene, rng: np.random.Generator) -> Object | None:
    for x, y in rng.uniform(10, 54, (2000, 2)):
        if all(max(abs(x - o.x), abs(y - o.y)) > o.size / 2 + 9 for o in scene.objects):
            return Object(str(rng.choice(SHAPES)), str(rng.choice(COLOURS)), x, y, 16.0)
    return None


def test_noise_grey_black_and_white_are_never_accepted():
    rng = np.random.default_rng(0)
    size = (IMAGE_SIZE, IMAGE_SIZE, 3)
    patches = [
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize(size[:2])
        for _ in range(10)
    ]
    images = [
        *rng.integers(0, 256, (10, *size), np.uint8),
        *np.clip(rng.normal(BACKGROUND, 40, (10, *size)), 0, 255).astype(np.uint8),
        *(np.full(size, v, np.uint8) for v in (0, 32, 64, 128, 192, 255)),
        *map(np.asarray, patches),
    ]
    readings = look_all(images)
    for caption in [*evaluation_captions(4), parse("a shape"), parse("two shapes")]:
        assert accepted(images, [caption] * len(images)) == 0
    assert all(r.fault or not any(s.shape and s.colour for s in r.objects) for r in readings)


def foreign(kind: str, size: float) -> np.ndarray:
    """A red figure that the world does not have, drawn by PIL at 8 times the size."""
    fine, ground = 8, tuple(int(v) for v in BACKGROUND)
    image = Image.new("RGB", (IMAGE_SIZE * fine,) * 2, ground)
    draw, red = ImageDraw.Draw(image), RGB["red"]
    c, r = IMAGE_SIZE * fine / 2, size / 2 * fine
    box = (c - r, c - r, c + r, c + r)
    if kind == "triangle upside down":
        draw.polygon([(c - r, c - r), (c + r, c - r), (c, c + r)], fill=red)
    elif kind == "diamond":
        draw.polygon([(c - r, c), (c, c - r), (c + r, c), (c, c + r)], fill=red)
    elif kind == "ellipse":
        draw.ellipse((c - r, c - 0.7 * r, c + r, c + 0.7 * r), fill=red)
    elif kind == "oblong":
        draw.rectangle((c - r, c - 0.7 * r, c + r, c + 0.7 * r), fill=red)
    elif kind == "rounded square":
        draw.rounded_rectangle(box, 0.6 * r, fill=red)
    elif kind == "ring":
        draw.ellipse(box, outline=red, width=int(0.5 * r))
    elif kind == "half circle":
        draw.pieslice(box, 180, 360, fill=red)
    elif kind == "bitten circle":
        draw.pieslice(box, 40, 320, fill=red)
    elif kind == "T":
        draw.rectangle((c - r, c - r, c + r, c - 0.2 * r), fill=red)
        draw.rectangle((c - 0.4 * r, c - r, c + 0.4 * r, c + r), fill=red)
    return np.asarray(image.resize((IMAGE_SIZE,) * 2, Image.Resampling.BOX))


@pytest.mark.parametrize(
    "kind",
    [
        *("triangle upside down", "diamond", "ellipse", "oblong", "rounded square"),
        *("ring", "half circle", "bitten circle", "T"),
    ],
)
def test_shapes_that_the_world_does_not_have_are_refused(kind):
    for reading in look_all([foreign(kind, size) for size in (16, 18, 20, 23, 26)]):
        assert len(reading.objects) == 1
        assert reading.objects[0].colour == "red"
        assert reading.objects[0].shape is None
        assert reading.objects[0].confidence == 0


@pytest.mark.parametrize("rgb", [(128, 128, 128), (255, 255, 255), (180, 150, 120), (250, 130, 20)])
def test_colours_that_the_world_does_not_have_are_refused(rgb):
    image = render(Scene((Object("circle", "red", 32, 32, 22),)))[0].astype(float)
    ground = np.array(BACKGROUND)
    share = np.linalg.norm(image - ground, axis=-1) / np.linalg.norm(np.array(RGB["red"]) - ground)
    painted = ground + share[..., None] * (np.array(rgb) - ground)
    (seen,) = look(np.clip(painted, 0, 255).astype(np.uint8)).objects
    assert (seen.shape, seen.colour) == ("circle", None)
    assert "colour" in seen.doubt


def test_an_object_of_two_colours_is_refused():
    halves = render([Scene((Object("circle", c, 32, 32, 24),)) for c in ("red", "pink")])
    image = np.where(np.arange(IMAGE_SIZE)[None, :, None] < 32, halves[0], halves[1])
    assert not judge(image, "a shape")


def test_touching_objects_are_refused():
    image = render(
        Scene((Object("square", "red", 22, 32, 20), Object("square", "red", 42, 32, 20)))
    )
    assert not judge(image[0], "two red squares")


def test_a_faint_ghost_is_something_else_in_the_picture():
    image = render(Scene((Object("circle", "red", 20, 20, 20),)))[0].astype(float)
    ghost = render(Scene((Object("square", "blue", 46, 46, 20),)))[0]
    image += 0.45 * (ghost - np.array(BACKGROUND))
    verdict = judge(np.clip(image, 0, 255).astype(np.uint8), "a red circle")
    assert not verdict
    assert "not plain" in verdict.why


# What it says.


def test_why_says_what_is_wrong():
    red, blue = Object("circle", "red", 16, 32, 20), Object("square", "blue", 46, 32, 20)
    image = render(Scene((red, blue)))[0]

    def why(caption):
        return judge(image, caption).why

    assert judge(image, "a red circle left of a blue square").obeyed
    assert why("a blue square right of a red circle") == "all as the caption says"
    assert why("three circles") == "expected 3 objects, found 2"
    assert why("a red circle") == "expected 1 object, found 2"
    assert why("two red circles") == "expected a red circle, found a blue square"
    assert why("a green circle and a blue square") == "expected a green circle, found a red circle"
    assert why("a red circle above a blue square") == (
        "expected the red circle above the blue square, found it left of"
    )
    assert why("a blue circle and a red square").count(";") == 1
    assert "is not clear" in judge(foreign("ring", 24), "a red circle").why
    assert "background" in judge(np.full_like(image, 255), "a red circle").why


def test_swapped_colours_are_refused():
    """The mistake that colour binding is about."""
    scene = Scene((Object("circle", "blue", 16, 32, 20), Object("square", "red", 46, 32, 20)))
    assert not judge(render(scene)[0], "a red circle and a blue square")


def test_frequencies_count_colours_and_shapes():
    scene = Scene((Object("circle", "red", 16, 32, 20), Object("cross", "red", 46, 32, 20)))
    readings = look_all([*render(scene), foreign("ring", 24)])
    colours, shapes = frequencies(readings), frequencies(readings, "shape")
    assert colours["red"] == 1
    assert shapes["circle"] == shapes["cross"] == shapes["unclear"] == pytest.approx(1 / 3)
    assert sum(frequencies([]).values()) == 0
    with pytest.raises(InputError, match="attribute"):
        frequencies(readings, "size")


def test_what_is_drawn_for_open_captions_is_read_back_in_the_true_proportions():
    readings = look_all(batch(5, 600, category="single", open_share=1.0)[1])
    colours = frequencies(readings)
    assert colours["unclear"] == 0
    assert max(abs(colours[c] - 1 / 6) for c in COLOURS) < 0.06


def test_training_batches_hold_no_held_out_combination():
    for reading in look_all(batch(6, 500, open_share=0.4)[1]):
        assert not is_held_out([(s.shape, s.colour) for s in reading.objects])


def test_pictures_of_another_size_or_type_and_uneven_lists_are_refused():
    with pytest.raises(InputError, match="64x64"):
        judge(np.zeros((32, 32, 3), np.uint8), "a red circle")
    with pytest.raises(InputError, match="float64"):
        judge(np.zeros((64, 64, 3)), "a red circle")
    with pytest.raises(InputError, match="1 pictures, but 2 captions"):
        judge_all(np.zeros((1, 64, 64, 3), np.uint8), ["a circle", "a square"])

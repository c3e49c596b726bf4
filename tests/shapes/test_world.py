from __future__ import annotations

import itertools

import numpy as np
import pytest

from w2sdiff.errors import InputError
from w2sdiff.shapes.render import ARM
from w2sdiff.shapes.world import (
    BACKGROUND,
    CATEGORIES,
    COLOURS,
    IMAGE_SIZE,
    RGB,
    SHAPES,
    STYLES,
    Object,
    Scene,
    batch,
    is_held_out,
    parse,
    render,
    sample_caption,
    sample_scene,
    size_range,
)


def inside(shape: str, x: float, y: float) -> bool:
    """Whether a point is in the shape of size 2 at the origin: plain geometry, no distances."""
    if max(abs(x), abs(y)) > 1:
        return False
    if shape == "triangle":
        return abs(x) <= (y + 1) / 2
    return {
        "circle": x * x + y * y <= 1,
        "square": True,
        "cross": min(abs(x), abs(y)) <= ARM,
    }[shape]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_drawn_shape_covers_what_geometry_says(shape):
    """Against supersampling of an independent definition."""
    x, y, size, fine = 30.3, 33.6, 21.0, 8
    drawn = render(Scene((Object(shape, "red", x, y, size),)))[0].astype(float)
    red, ground = np.array(RGB["red"], float), np.array(BACKGROUND)
    share = (drawn - ground) @ (red - ground) / ((red - ground) ** 2).sum()
    points = (np.arange(IMAGE_SIZE * fine) + 0.5) / fine
    grid = np.array(
        [[inside(shape, 2 * (u - x) / size, 2 * (v - y) / size) for u in points] for v in points]
    )
    truth = grid.reshape(IMAGE_SIZE, fine, IMAGE_SIZE, fine).mean((1, 3))
    assert abs(share.sum() - truth.sum()) < 0.01 * truth.sum()
    assert np.abs(share - truth).max() < 0.3  # corners are where coverage by distance differs
    assert np.abs(share - truth).mean() < 0.001


def test_what_is_drawn_does_not_depend_on_what_else_is_drawn():
    scenes = [
        sample_scene(sample_caption(rng), rng) for rng in map(np.random.default_rng, range(70))
    ]
    together = render(scenes)
    assert all((render(s)[0] == image).all() for s, image in zip(scenes, together, strict=True))


def test_later_objects_cover_earlier_ones_and_may_hang_over_the_edge():
    under, over = Object("square", "red", 32, 32, 30), Object("square", "blue", 32, 32, 10)
    image = render(Scene((under, over)))[0]
    assert tuple(image[32, 32]) == RGB["blue"]
    assert tuple(image[32, 20]) == RGB["red"]
    corner = render(Scene((Object("square", "green", 0, 64, 30),)))[0]
    assert tuple(corner[63, 0]) == RGB["green"]
    assert tuple(corner[0, 63]) == BACKGROUND


def test_an_empty_scene_is_background_and_no_scenes_are_no_pictures():
    assert (render(Scene(())) == np.array(BACKGROUND)).all()
    assert render([]).shape == (0, IMAGE_SIZE, IMAGE_SIZE, 3)


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (Object("blob", "red", 32, 32, 20), "unknown shape 'blob'"),
        (Object("circle", "mauve", 32, 32, 20), "unknown colour 'mauve'"),
        (Object("circle", "red", 70, 32, 20), "outside the picture"),
    ],
)
def test_what_cannot_be_drawn_is_refused(thing, message):
    with pytest.raises(InputError, match=message):
        render(Scene((thing,)))


def test_item_i_of_a_seed_is_the_same_in_every_batch():
    captions, images = batch(3, 20)
    for start, n in ((0, 1), (7, 5), (19, 1)):
        some, pictures = batch(3, n, start=start)
        assert some == captions[start : start + n]
        assert (pictures == images[start : start + n]).all()
    assert batch(4, 20)[0] != captions


@pytest.mark.parametrize("category", CATEGORIES)
def test_scenes_hold_what_the_caption_demands_apart_and_within_the_picture(category):
    for seed in range(200):
        rng = np.random.default_rng(seed)
        caption = sample_caption(rng, category=category)
        scene = sample_scene(caption, rng)
        objects = scene.objects
        assert len(objects) == len(caption.demands)
        assert all(
            d.admits((o.shape, o.colour)) for d, o in zip(caption.demands, objects, strict=True)
        )
        low, high = size_range(len(objects))
        for o in objects:
            assert low <= o.size <= high
            assert o.size / 2 <= min(o.x, o.y)
            assert max(o.x, o.y) <= IMAGE_SIZE - o.size / 2
        for a, b in itertools.combinations(objects, 2):
            assert max(abs(a.x - b.x), abs(a.y - b.y)) > (a.size + b.size) / 2 + 2
        if caption.relation:
            dx, dy = objects[0].x - objects[1].x, objects[0].y - objects[1].y
            along, across = (dx, dy) if caption.relation in ("left of", "right of") else (dy, dx)
            assert (along < 0) == (caption.relation in ("left of", "above"))
            assert abs(along) > abs(across) + 5
        if category == "counting":
            assert len({(o.shape, o.colour) for o in objects}) == 1


@pytest.mark.parametrize("weights", [None, {"red": 0.05}])
def test_training_never_shows_a_held_out_combination(weights):
    """Not by open captions, not by counting, not with weighted colours."""
    seen = 0
    for index in range(4000):
        rng = np.random.Generator(np.random.Philox(key=(0, index)))
        caption = sample_caption(rng, open_share=0.3, colour_weights=weights)
        scene = sample_scene(caption, rng, colour_weights=weights)
        kinds = [(o.shape, o.colour) for o in scene.objects]
        assert not is_held_out(kinds)
        seen += len(kinds) > 1
    assert seen > 2500


def test_what_a_caption_leaves_open_follows_the_stated_truth():
    """Chi-square of the kinds drawn for "a shape": uniform, and weighted by colour."""
    caption, n = parse("a shape"), 6000
    for weights in (None, {"red": 0.2, "blue": 3.0}):
        rng = np.random.default_rng(1)
        kinds = [
            (o.shape, o.colour)
            for o in (
                sample_scene(caption, rng, colour_weights=weights).objects[0] for _ in range(n)
            )
        ]
        weigh = {c: (weights or {}).get(c, 1.0) for c in COLOURS}
        total = len(SHAPES) * sum(weigh.values())
        expected = {(s, c): n * weigh[c] / total for s in SHAPES for c in COLOURS}
        chi2 = sum((kinds.count(k) - e) ** 2 / e for k, e in expected.items())
        assert chi2 < 49.7  # 23 degrees of freedom, p = 0.001


def test_styles_are_slices_of_the_sizes():
    caption, rng = parse("a circle"), np.random.default_rng(0)
    for style, (low, high) in STYLES.items():
        sizes = [sample_scene(caption, rng, style=style).objects[0].size for _ in range(200)]
        bottom, top = size_range(1)
        assert bottom + low * (top - bottom) <= min(sizes)
        assert max(sizes) <= bottom + high * (top - bottom)
    with pytest.raises(InputError, match="unknown style 'tiny'"):
        sample_scene(caption, rng, style="tiny")


def test_the_colours_are_far_from_each_other_and_from_the_background():
    prototypes = np.array([*RGB.values(), BACKGROUND], float)
    distance = np.linalg.norm(prototypes[:, None] - prototypes, axis=-1)
    assert distance[~np.eye(len(distance), dtype=bool)].min() > 100

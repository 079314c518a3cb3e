"""Scenes of many products: as many as asked for, apart, inside the frame; condition pictures read back."""

import numpy as np
import pytest
from onbrand.assets.crowded_scenes import (
    SIDES,
    colours_picture,
    crowded_scene,
    crowded_scenes,
    kinds_picture,
)
from onbrand.data.studio import CLASSES, COLOURS
from onbrand.evaluation.detection import iou


@pytest.mark.parametrize("count", SIDES)
def test_every_product_asked_for_can_be_seen_beside_the_others(count):
    for index in range(4):
        scene = crowded_scene(index, count, seed=5)
        boxes = [box for _, box in scene.boxes()]
        assert len({product.kind for product in scene.products}) == len(boxes) == count
        assert all(iou(a, b) < 0.15 for i, a in enumerate(boxes) for b in boxes[:i])
        # inside the frame: hardly a pixel of the picture's outermost line is a product's
        line = np.ones_like(scene.owner, dtype=bool)
        line[1:-1, 1:-1] = False
        assert (scene.owner[line] >= 0).mean() < 0.2


def test_scenes_are_drawn_again_alike_and_in_order():
    together = crowded_scenes([3, 1], [2, 4], seed=6)
    for scene, (index, count) in zip(together, [(3, 2), (1, 4)], strict=True):
        alone = crowded_scene(index, count, seed=6)
        assert scene.products == alone.products
        assert np.array_equal(np.asarray(scene.picture), np.asarray(alone.picture))
    assert np.asarray(crowded_scene(3, 2, seed=7).picture).tobytes() != together[0].picture.tobytes()


@pytest.mark.parametrize("count", [0, 7])
def test_more_products_than_there_is_room_for_are_refused(count):
    with pytest.raises(ValueError, match=f"count must be from 1 to 6, got {count}"):
        crowded_scene(0, count, seed=0)


def test_the_kinds_picture_tells_all_kinds_apart():
    left, right = (0.0, 0.25, 0.5, 0.75), (0.5, 0.25, 1.0, 0.75)
    seen = set()
    for kind in CLASSES:
        pixels = np.asarray(kinds_picture([(kind, left)]))
        assert not np.concatenate([pixels[:, 32:].ravel(), pixels[:16].ravel(), pixels[48:].ravel()]).any()
        inside = pixels[16:48, :32].reshape(-1, 3)
        assert (inside == inside[0]).all()
        assert inside[0].all()
        seen.add(tuple(inside[0]))
    assert len(seen) == len(CLASSES)
    both = np.asarray(kinds_picture([("mug", left), ("hat", right)]))
    assert np.array_equal(both[:, 32:], np.asarray(kinds_picture([("hat", right)]))[:, 32:])


def test_the_colours_picture_has_the_colour_at_the_centre_and_no_extent():
    for name, colour in COLOURS.items():
        wide, narrow = (
            np.asarray(colours_picture([(name, box)], np.random.default_rng(0)), dtype=float)
            for box in ((0.0, 0.0, 0.6, 0.6), (0.2, 0.1, 0.4, 0.5))
        )
        assert np.array_equal(wide, narrow)
        changed = np.abs(wide - wide[-1, -1]).sum(-1)
        y, x = np.unravel_index(changed.argmax(), changed.shape)
        assert np.hypot(y / 64 - 0.3, x / 64 - 0.3) < 0.1
        assert np.abs(wide[y, x] - colour).max() < 8
    first, second = (
        np.asarray(colours_picture([("red", (0.0, 0.0, 0.6, 0.6))], np.random.default_rng(seed)))
        for seed in (0, 1)
    )
    assert not np.array_equal(first, second)

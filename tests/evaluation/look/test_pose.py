import json

import numpy as np
import pytest
from onbrand.evaluation.look import pose
from onbrand.evaluation.look.box import Box, box_of
from onbrand.evaluation.look.foreground import look
from onbrand.evaluation.look.pose import GRID, LEVELS, Outlines, apart, outline


def standing(top: int = 10, bottom: int = 50, left: int = 25, right: int = 35) -> np.ndarray:
    mask = np.zeros((64, 64), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def test_the_box_holds_the_mask_exactly():
    assert box_of(standing()) == Box(25, 10, 35, 50)
    assert (box_of(standing()).width, box_of(standing()).height) == (10, 40)


def test_an_outline_is_the_mask_in_its_square():
    found = outline(standing(), box_of(standing()))
    expected = np.zeros((GRID, GRID), dtype=np.uint8)
    expected[:, 9:15] = LEVELS - 1  # a quarter as wide as high
    assert (found == expected).all()


def test_place_and_size_drop_out():
    near, far = standing(), standing(0, 20, 2, 7)
    assert (outline(near, box_of(near)) == outline(far, box_of(far))).all()


def test_the_distance_is_one_less_overlap_over_union():
    rng = np.random.default_rng(0)
    some, others = (rng.integers(0, LEVELS, (n, GRID, GRID), dtype=np.uint8) for n in (3, 4))
    by_hand = [
        [1 - np.minimum(a, b).sum(dtype=int) / np.maximum(a, b).sum(dtype=int) for b in others] for a in some
    ]
    assert apart(some, others) == pytest.approx(np.array(by_hand))


def test_a_lying_product_is_far_from_a_standing_one():
    one = outline(standing(), box_of(standing()))
    lying = outline(standing().T, box_of(standing().T))
    # of two bars 24 by 6 that cross, 36 pixels are common
    assert apart(one[None], lying[None])[0, 0] == pytest.approx(1 - 36 / (2 * 24 * 6 - 36))


def test_the_nearest_may_leave_one_out_and_keep_to_a_class():
    masks = np.zeros((3, GRID, GRID), dtype=np.uint8)
    for i, columns in enumerate((12, 11, 6)):
        masks[i, :, :columns] = LEVELS - 1
    known = Outlines(masks, ("a", "a", "b"))
    assert known.nearest(masks[:1]) == pytest.approx([0])
    assert known.nearest(masks[:1], own=np.array([0])) == pytest.approx([1 / 12])
    assert known.nearest(masks[:1], class_name="b") == pytest.approx([1 / 2])
    assert np.isnan(known.nearest(masks[2:], class_name="b", own=np.array([2]))).all()


def test_outlines_survive_json():
    masks = np.random.default_rng(0).integers(0, LEVELS, (5, GRID, GRID), dtype=np.uint8)
    known = Outlines(masks, ("b", "a", "b", "", "a"))
    again = Outlines.from_dict(json.loads(json.dumps(known.to_dict())))
    assert (again.masks == masks).all()
    assert again.classes == known.classes


def test_a_picture_without_a_product_has_no_outline(draw):
    assert look(draw(colour=None)).outline is None
    assert look(draw()).outline.shape == (GRID, GRID)


def test_many_outlines_are_compared_block_by_block(monkeypatch):
    masks = np.random.default_rng(0).integers(0, LEVELS, (23, GRID, GRID), dtype=np.uint8)
    known, own = Outlines(masks, ("a", "b") * 11 + ("a",)), np.arange(23)
    at_once = known.nearest(masks, own=own, class_name="b")
    sizes = []
    monkeypatch.setattr(pose, "BLOCK", 5)
    monkeypatch.setattr(pose, "apart", lambda some, others: sizes.append(len(some)) or apart(some, others))
    assert (known.nearest(masks, own=own, class_name="b") == at_once).all()
    assert sizes == [5, 5, 5, 5, 3]


def test_without_outlines_there_is_no_nearest():
    none = Outlines(np.zeros((0, GRID, GRID), dtype=np.uint8), ())
    assert np.isnan(none.nearest(np.ones((2, GRID, GRID), dtype=np.uint8))).all()
    assert none.nearest(none.masks).shape == (0,)

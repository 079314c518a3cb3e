"""Pictures of layouts and of scores: what is where, by looking at pixels."""

import numpy as np
import pytest
import torch
from onbrand.evaluation.layout_pictures import attention_rows, with_attention, with_boxes
from onbrand.evaluation.score_maps import score_maps
from PIL import Image, ImageColor

GREY = Image.new("RGB", (64, 32), (128, 128, 128))


def test_boxes_lie_where_they_should_on_an_enlarged_picture():
    shown = with_boxes(GREY, [("mug", (0.5, 0.0, 1.0, 0.5)), ("hat", (0.0, 0.5, 0.25, 1.0))])
    assert shown.size == (256, 128)
    pixels = np.asarray(shown).astype(int)
    ours, theirs = (np.array(ImageColor.getrgb(colour)) for colour in ("#d1495b", "#2e6f95"))
    assert (pixels[40, 128] == ours).all()
    assert (pixels[40, 255] == ours).all()
    assert (pixels[127, 30] == theirs).all()
    assert (pixels[100, 150] == 128).all()


def test_attention_is_bright_where_it_is_most():
    attention = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    pixels = np.asarray(with_attention(GREY, attention)).astype(int).sum(2)
    assert pixels[20, 200] > pixels[20, 40] + 150
    assert pixels[100, 200] == pixels[20, 40]


def test_a_row_is_the_picture_and_each_concepts_map():
    maps = {"mug": torch.zeros(2, 4, 4), "hat": torch.ones(2, 4, 4)}
    pictures, captions = attention_rows([GREY, GREY], maps, [("mug", (0, 0, 1, 1))])
    assert captions == ["", "mug", "hat"] * 2
    assert len(pictures) == 6
    assert np.asarray(pictures[1]).mean() < np.asarray(pictures[2]).mean()


def test_scores_are_drawn_a_row_a_concept():
    scores = torch.full((2, 2, 3, 4, 4), torch.nan)
    scores[0, 1], scores[1, 0] = 0.0, 1.0
    picture = np.asarray(score_maps(["mug", "hat"], scores)).astype(int)
    tiles = [tuple(int(v) for v in picture[y, -60]) for y in (24 + 14 + 48, 24 + 14 + 104 + 48)]
    assert tiles == [(24, 34, 66), (255, 196, 61)]
    with pytest.raises(ValueError, match=r"scores must be of shape \(3, 3, N, rows, columns\), got"):
        score_maps(["mug", "hat", "bag"], scores)

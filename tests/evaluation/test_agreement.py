import pytest
import torch
from onbrand.evaluation.agreement import TextAgreement, clip_agreement
from onbrand.evaluation.looks import name_of
from PIL import Image


class Fake:
    """A CLIP whose features are a corner's red and green, and a caption's first two numbers."""

    name = "fake"

    def __call__(self, gallery):
        return torch.tensor(
            [[value / 255 for value in p.resize((1, 1)).getpixel((0, 0))[:2]] for p in gallery]
        )

    def of_text(self, prompts):
        return torch.tensor([[float(word) for word in prompt.split()] for prompt in prompts])


def test_a_clip_scores_each_picture_with_its_caption():
    scorer = clip_agreement(Fake())
    red, green = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 255, 0))
    assert scorer([red, green, green], ["1 0", "1 0", "0 0.5"]).tolist() == [1, 0, 0.5]
    assert name_of(scorer) == "CLIP score by fake"


def test_the_agreement_is_the_mean_over_the_catalogues():
    found = TextAgreement.of([0.2, 0.4, 0.6], scorer="fake", known={"scorer": "fake", "mean": 0.5, "n": 9})
    assert (found.mean, found.n, found.reference) == pytest.approx((0.4, 3, 0.5))
    assert found.ratio == pytest.approx(0.8)
    assert found.standard_error == pytest.approx(0.2 / 3**0.5)
    assert str(found) == "0.80 of the catalogue's own 0.500, by fake"
    assert TextAgreement(**found.to_dict()) == found


def test_without_the_catalogues_scores_there_is_no_ratio():
    found = TextAgreement.of([0.2], scorer="fake", known=None)
    assert (found.reference, found.ratio, found.standard_error) == (None, None, 0)
    below = TextAgreement.of([0.2], scorer="fake", known={"scorer": "fake", "mean": -0.1, "n": 1})
    assert (below.reference, below.ratio) == (-0.1, None)
    assert str(found) == "by fake"

"""Initial noise: who draws it, from which generator, and the initializer's protocol."""

from types import SimpleNamespace

import pytest
import torch
from onbrand.inference import draw_noise

SHAPE = (4, 8, 8)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Antithetic:
    """A pair z, -z; counts its calls."""

    def __init__(self):
        self.calls = []

    def draw(self, num_images, shape, generator):
        self.calls.append((num_images, shape))
        z = torch.randn(1, *shape, generator=generator)
        return torch.cat([z, -z])


def test_one_draw_a_prompt_from_one_generator():
    g = seeded(0)
    expected = torch.cat([torch.randn(3, *SHAPE, generator=g) for _ in range(2)])
    drawn = draw_noise(2, 3, SHAPE, seeded(0))
    assert torch.equal(drawn, expected)
    assert drawn.dtype == torch.float32


def test_a_list_of_generators_is_one_a_picture():
    drawn = draw_noise(2, 2, SHAPE, [seeded(s) for s in (5, 6, 7, 8)])
    assert torch.equal(drawn[2], torch.randn(SHAPE, generator=seeded(7)))
    assert torch.equal(draw_noise(1, 1, SHAPE, [seeded(8)])[0], drawn[3])


def test_an_initializer_is_asked_once_a_prompt():
    initializer = Antithetic()
    drawn = draw_noise(3, 2, SHAPE, seeded(0), initializer=initializer)
    assert initializer.calls == [(2, SHAPE)] * 3
    assert torch.equal(drawn[0::2], -drawn[1::2])
    assert not torch.equal(drawn[0], drawn[2])


def test_bad_generators_are_refused():
    with pytest.raises(ValueError, match="generator must be one, or one for each of 4 pictures, got 3"):
        draw_noise(2, 2, SHAPE, [seeded(s) for s in range(3)])
    with pytest.raises(ValueError, match=r"generator must be a single one beside noise, .* list of 2"):
        draw_noise(1, 2, SHAPE, [seeded(0), seeded(1)], initializer=Antithetic())
    on_gpu = SimpleNamespace(device=torch.device("cuda"))
    with pytest.raises(ValueError, match=r"generator must be on the CPU, .* got cuda"):
        draw_noise(1, 2, SHAPE, on_gpu)


@pytest.mark.parametrize(
    ("result", "got"),
    [
        (torch.zeros(1, *SHAPE), r"float32 on cpu shaped \(1, 4, 8, 8\)"),
        (torch.zeros(2, *SHAPE, dtype=torch.float64), r"float64 on cpu"),
        (torch.zeros(2, *SHAPE, device="meta"), r"float32 on meta"),
    ],
)
def test_an_initializer_that_breaks_its_protocol_is_refused(result, got):
    wrong = SimpleNamespace(draw=lambda num_images, shape, generator: result)
    with pytest.raises(
        ValueError, match=rf"must return float32 on the CPU shaped \(2, 4, 8, 8\), got torch.{got}"
    ):
        draw_noise(1, 2, SHAPE, initializer=wrong)


def test_noise_that_cannot_draw_is_refused():
    with pytest.raises(ValueError, match=r"noise must have a method draw\(.*\), got Tensor"):
        draw_noise(1, 2, SHAPE, initializer=torch.zeros(2, *SHAPE))

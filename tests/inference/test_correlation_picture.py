"""The picture of a correlation matrix: its colours, its size, what it refuses."""

import numpy as np
import pytest
import torch
from onbrand.inference.correlation_picture import BLUE, RED, WHITE, correlation_picture


def test_colours_tell_the_sign():
    correlation = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.5], [0.0, 0.5, 1.0]])
    cell = 60
    pixels = np.asarray(correlation_picture(correlation, cell=cell))
    found = pixels[-24 - 3 * cell :, -24 - 3 * cell :][3 : 3 * cell : cell, 3 : 3 * cell : cell].astype(int)
    between = tuple((a + b) // 2 for a, b in zip(WHITE, RED, strict=True))
    expected = [[RED, BLUE, WHITE], [BLUE, RED, between], [WHITE, between, RED]]
    assert np.abs(found - np.array(expected)).max() <= 1


def test_values_are_written_in_the_cells():
    """Two values of one colour within a grey level differ only by what is written."""
    a, b = (
        np.asarray(correlation_picture(torch.full((1, 1), value), cell=60)).astype(int)
        for value in (0.104, 0.106)
    )
    cell = np.s_[-84:-24, -84:-24]
    assert np.abs(a - b)[cell].max() > 100
    zero, below = (np.asarray(correlation_picture(torch.full((1, 1), v), cell=60)) for v in (0.0, -0.0001))
    assert np.array_equal(zero, below)


def test_a_long_title_widens_the_picture():
    small = correlation_picture(torch.eye(2))
    titled = correlation_picture(torch.eye(2), title="a title that is longer than two cells are wide")
    assert titled.width > small.width
    assert titled.height > small.height


@pytest.mark.parametrize(
    ("correlation", "cell", "message"),
    [
        (torch.ones(2, 3), 84, r"correlation must be of shape \(N, N\), got \(2, 3\)"),
        (torch.tensor([[1.0, -1.5], [-1.5, 1.0]]), 84, r"correlation must be in \[-1, 1\], got -1.5 to 1"),
        (torch.full((1, 1), float("nan")), 84, r"correlation must be in \[-1, 1\], got nan to nan"),
        (torch.eye(2), 16, "cell must be at least 32 pixels, got 16"),
    ],
)
def test_what_is_no_correlation_is_refused(correlation, cell, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        correlation_picture(correlation, cell=cell)

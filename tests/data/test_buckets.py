"""Each picture goes where its aspect ratio is nearest."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onbrand.data import Buckets, assign_buckets

SIZES = [(64, 64), (96, 64), (64, 96)]
SIDES = st.integers(8, 4000)


def test_portrait_square_and_landscape():
    buckets = assign_buckets([(300, 200), (100, 101), (200, 300), (640, 480), (4000, 100)], SIZES)
    assert buckets.bucket_ids.tolist() == [1, 0, 2, 1, 1]
    assert buckets.bucket_ids.dtype == torch.int64
    assert buckets.counts() == {(64, 64): 1, (96, 64): 3, (64, 96): 1}
    assert buckets.of((96, 64)).tolist() == [0, 3, 4]
    assert len(buckets) == 5


@given(st.lists(st.tuples(SIDES, SIDES), max_size=20))
def test_no_bucket_is_nearer(pictures):
    buckets = assign_buckets(pictures, SIZES, allow_empty=True)
    for (height, width), chosen in zip(pictures, buckets.bucket_ids.tolist(), strict=True):
        far = [abs(math.log(height / width) - math.log(h / w)) for h, w in SIZES]
        assert far[chosen] <= min(far) + 1e-6


@given(SIDES, SIDES)
def test_a_turned_picture_goes_to_the_turned_bucket(height, width):
    turned = {0: 0, 1: 2, 2: 1}
    upright, lying = (
        assign_buckets([size], SIZES, allow_empty=True) for size in ((height, width), (width, height))
    )
    assert turned[int(upright.bucket_ids[0])] == int(lying.bucket_ids[0])


def test_of_two_as_near_the_first_listed_wins():
    for sizes in ([(64, 128), (128, 64)], [(128, 64), (64, 128)]):
        assert assign_buckets([(100, 100)], sizes, allow_empty=True).bucket_ids.tolist() == [0]


def test_empty_buckets_are_named_with_what_came_nearest():
    message = (
        r"every bucket must have pictures, got none for 96 x 64 \(nearest: 50 x 50\), 64 x 96 \(nearest: "
        r"42 x 50\); pictures of the others: 64 x 64: 2"
    )
    with pytest.raises(ValueError, match=message):
        assign_buckets([(50, 50), (42, 50)], SIZES)
    with pytest.raises(ValueError, match=r"got none for 64 x 64 \(nearest: no picture at all\)$"):
        assign_buckets([], [(64, 64)])
    assert assign_buckets([(50, 50)], SIZES, allow_empty=True).of((96, 64)).tolist() == []


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([(64, 64), (60, 64)], "bucket sizes must be positive multiples of 8, got 60 x 64"),
        ([(64, 0)], "bucket sizes must be positive multiples of 8, got 64 x 0"),
        ([(-8, 64)], "bucket sizes must be positive multiples of 8, got -8 x 64"),
        ([(64, 64), [64, 64]], "bucket sizes must differ, got 64 x 64 twice"),
        ([], "buckets must have a size, got none"),
    ],
)
def test_bad_sizes(sizes, message):
    with pytest.raises(ValueError, match=message):
        assign_buckets([(50, 50)], sizes)


def test_bad_buckets():
    with pytest.raises(ValueError, match=r"bucket ids must be in \[0, 3\), got 3"):
        Buckets(SIZES, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="bucket must be one of 64 x 64, 96 x 64, 64 x 96, got 32 x 64"):
        Buckets(SIZES, torch.tensor([0])).of((32, 64))

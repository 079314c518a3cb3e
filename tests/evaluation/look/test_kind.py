import json

import numpy as np
import pytest
from onbrand.evaluation.look.foreground import look, to_lab
from onbrand.evaluation.look.kind import SMALLEST_VARIANCE, Kind, features_of, held_out_distances
from onbrand.evaluation.look.packed import pack, unpack
from PIL import Image
from sklearn.decomposition import PCA


@pytest.fixture
def features() -> np.ndarray:
    """200 points of 40 directions, the first five wide."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(200, 40)) * np.array([8, 6, 5, 4, 3] + [0.5] * 35) + 2).astype(np.float32)


def test_features_are_layout_edges_and_colours():
    halves = Image.new("RGB", (96, 96), "white")
    halves.paste("black", (0, 48, 96, 96))
    found = features_of(to_lab(halves))
    assert found.shape == (580,)
    tiles = found[:192].reshape(3, 8, 8)
    assert tiles[0, :4] == pytest.approx(10, abs=1e-3)
    assert tiles[0, 4:] == pytest.approx(0, abs=1e-3)
    edges = found[192:480].reshape(6, 6, 8)
    assert (edges[2:4, :, 4] > 0).all()  # the gradient points down, a right angle from across
    assert edges.sum() == pytest.approx(edges[2:4, :, 4].sum())
    assert sorted(found[480:])[-2:] == pytest.approx([3 * 0.5**0.5] * 2)


def test_axes_and_variances_are_those_of_scikit_learn(features):
    kind, oracle = Kind.fit(features), PCA(n_components=50 if features.shape[1] > 50 else 40).fit(features)
    count = len(kind.axes)
    assert count == 40
    assert kind.variances == pytest.approx(oracle.explained_variance_[:count], rel=1e-3)
    assert abs((kind.axes * oracle.components_[:count]).sum(axis=1)) == pytest.approx(1, abs=2e-3)


def test_few_pictures_have_few_axes_and_an_even_rest(features):
    kind = Kind.fit(features[:20])
    assert kind.axes.shape == (5, 40)
    variances = PCA().fit(features[:20]).explained_variance_
    assert kind.rest == pytest.approx(variances[5:].sum() / 35, rel=1e-4)


def test_further_pictures_are_about_1_away_and_another_kind_is_farther(features):
    kind = Kind.fit(features[:150])
    assert np.median(kind.distance(features[150:])) == pytest.approx(1, abs=0.5)
    strange = features[150:] + 10 * np.eye(40)[20]
    assert kind.distance(strange).min() > 1.5 * kind.distance(features[150:]).max()


def test_each_picture_is_held_out_from_its_own_space(features):
    found = held_out_distances(features[:30])
    for row in (0, 7):
        others = np.arange(30) % 10 != row % 10
        alone = Kind.fit(features[:30][others]).distance(features[row : row + 1])
        assert found[row] == pytest.approx(alone[0])


def test_equal_pictures_differ_by_grain_alone():
    same = np.ones((10, 6))
    kind = Kind.fit(same)
    assert kind.rest == SMALLEST_VARIANCE
    assert kind.distance(same) == pytest.approx(0, abs=1e-3)
    assert kind.distance(same + 0.01).max() < 1


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_smallest_catalogues_have_a_distance(n, features):
    assert np.isfinite(Kind.fit(features[:n]).distance(features[-3:])).all()


def test_the_space_survives_json(features):
    kind = Kind.fit(features)
    again = Kind.from_dict(json.loads(json.dumps(kind.to_dict())))
    assert again.distance(features) == pytest.approx(kind.distance(features), rel=1e-6)
    assert again.descriptor == kind.descriptor


def test_large_and_small_pictures_are_of_one_kind(draw):
    small, large = draw(noise=0), draw(noise=0).resize((256, 256), Image.Resampling.LANCZOS)
    other = draw(noise=0, backdrop=(60, 90, 160))
    near = np.linalg.norm(look(small).features - look(large).features)
    assert near < 0.2 * np.linalg.norm(look(small).features - look(other).features)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
def test_packed_arrays_come_back_exactly(dtype):
    array = np.random.default_rng(0).integers(0, 200, (3, 4)).astype(dtype)
    again = unpack(json.loads(json.dumps(pack(array))))
    assert again.dtype == dtype
    assert (again == array).all()


def test_packed_arrays_that_are_cut_off_are_refused():
    stored = pack(np.zeros((3, 4), dtype=np.uint8)) | {"shape": [3, 5]}
    with pytest.raises(ValueError, match=r"packed array must hold \[3, 5\] values, got 12"):
        unpack(stored)

import numpy as np
import pytest
from onbrand.evaluation.clusters import Cluster, Disagreement, clusters_of


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", ["normal", "uniform", "exponential", "standard_t"])
@pytest.mark.parametrize("n", [20, 80, 500])
def test_one_broad_group_is_one(shape, n, seed):
    rng = np.random.default_rng(seed)
    values = rng.standard_t(3, n) if shape == "standard_t" else getattr(rng, shape)(size=n)
    assert len(clusters_of(values, step=0.01)) == 1


def test_groups_far_apart_are_found_with_their_sizes_and_medians():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(c, 0.5, n) for c, n in ((0, 30), (10, 50), (30, 20))])
    found = clusters_of(rng.permutation(values), step=1)
    assert [cluster.size for cluster in found] == [50, 30, 20]
    assert [cluster.centre[0] for cluster in found] == pytest.approx([10, 0, 30], abs=0.4)


def test_colours_are_parted_along_any_direction():
    rng = np.random.default_rng(0)
    warm, cool = (np.array(colour) + rng.normal(0, 0.5, (20, 3)) for colour in ((90, 5, 10), (90, -3, -8)))
    found = clusters_of(np.concatenate([warm, cool]), step=6)
    assert sorted(cluster.size for cluster in found) == [20, 20]
    assert sorted(cluster.centre[2] for cluster in found) == pytest.approx([-8, 10], abs=0.5)


def test_a_small_step_and_a_few_outliers_are_no_disagreement():
    values = np.concatenate([np.zeros(50), np.full(50, 1.0)])
    assert len(clusters_of(values, step=1.5)) == 1
    assert len(clusters_of(values, step=0.5)) == 2
    assert len(clusters_of(np.concatenate([np.zeros(96), np.full(4, 9.0)]), step=1)) == 1


def test_what_was_not_measured_is_left_out():
    assert clusters_of(np.array([1.0, np.nan, 3.0]), step=1) == (Cluster(2, (2.0,)),)
    assert clusters_of(np.array([np.nan]), step=1) == ()


def test_a_disagreement_reads_well_and_survives_json():
    found = Disagreement("extent", "mug", (Cluster(12, (0.7231,)), Cluster(8, (0.5,))))
    assert str(found) == (
        "reference pictures of class 'mug' disagree on extent: 12 pictures at 0.723, 8 pictures at 0.5"
    )
    colours = Disagreement("background", None, (Cluster(2, (98.0, 0.0, -1.26)),))
    assert str(colours) == "reference pictures disagree on background: 2 pictures at Lab (98.0, 0.0, -1.3)"
    assert Disagreement.from_dict(found.to_dict()) == found


def test_no_zero_has_a_minus():
    found = Disagreement(
        "background", None, (Cluster(3, (98.6, -0.004, 0.0)), Cluster(2, (80.0, 0.0, -0.01)))
    )
    assert str(found).endswith("3 pictures at Lab (98.6, 0.0, 0.0), 2 pictures at Lab (80.0, 0.0, 0.0)")

"""The studio's detector: truth drawn beside pictures, patches into detections, and the packaged weights."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from onbrand.assets import studio_detector as module
from onbrand.assets.studio_detector import (
    NOTHING,
    SMALLEST,
    WEIGHTS,
    SceneReader,
    StudioDetector,
    _found,
    held_out_scores,
    load_studio_detector,
)
from onbrand.assets.studio_scenes import NOBODY, Scene, box_of, free_scene, painted, scenes, wild_scene
from onbrand.data.studio import CLASSES, COLOURS, Product, Shot
from onbrand.data.studio_camera import Light, Placement, to_picture
from onbrand.evaluation import iou
from onbrand.evaluation.look.foreground import product_mask
from onbrand.inference import load_pipeline
from onbrand.inference.generate import generate
from onbrand.train.models import TINY_BASE
from PIL import Image
from safetensors.torch import load_file

HELD_OUT = 10**7


@pytest.fixture(scope="module")
def detector() -> StudioDetector:
    return load_studio_detector()


def before_blue(
    products: Sequence[Product], placements: Sequence[Placement]
) -> tuple[Image.Image, np.ndarray]:
    """Products without shadows on a blue that none has, and whose each pixel is."""
    canvas = np.full((128, 128, 3), (0.3, 0.9, 1.0), dtype=np.float32)
    rng = np.random.default_rng(0)
    owner = painted(canvas, rng, tuple(products), list(placements), Light(0.0, 0.2, 0.0))
    return to_picture(canvas, rng, noise=0.0), owner


def test_wild_scenes_are_the_studios_own_pictures() -> None:
    for index in range(12):
        shot = Shot("wild", 64, 5, index)
        scene = wild_scene(shot)
        assert np.array_equal(np.asarray(scene.picture), np.asarray(shot.draw()))
        assert scene.products == shot.cast()


@pytest.mark.parametrize("kind", CLASSES)
def test_the_truth_is_where_the_product_shows(kind: str) -> None:
    picture, owner = before_blue([Product(kind, "red")], [Placement(0.45, 0.55, 0.6, 12.0)])
    seen = np.asarray(product_mask(picture)) > 127
    both, either = (seen & (owner == 0)).sum(), (seen | (owner == 0)).sum()
    # fills the holes of handles and chairs, which the truth leaves open
    assert both / either > (0.7 if kind in ("bag", "chair", "mug") else 0.93)
    assert iou(box_of(seen), box_of(owner == 0)) > 0.94


def test_what_others_cover_or_the_frame_cuts_off_is_not_there() -> None:
    small, large = Placement(0.5, 0.5, 0.2), Placement(0.5, 0.5, 0.9)
    hidden = before_blue([Product("mug", "red"), Product("shirt", "blue")], [small, large])[1]
    assert set(np.unique(hidden)) == {NOBODY, 1}
    shown = before_blue([Product("shirt", "blue"), Product("mug", "red")], [large, small])[1]
    assert set(np.unique(shown)) == {NOBODY, 0, 1}
    blank, scene = Image.new("RGB", (128, 128)), (Product("mug", "red"), Product("shirt", "blue"))
    assert [product.kind for product, _ in Scene(blank, hidden, scene).boxes()] == ["shirt"]
    cut = before_blue([Product("shirt", "blue")], [Placement(1.0, 0.5, 0.5)])[1]
    assert box_of(cut == 0)[2] == 1.0


def test_boxes_are_fractions_around_all_pixels() -> None:
    mask = np.zeros((10, 20), dtype=bool)
    mask[2, 5] = mask[7, 14] = True
    assert box_of(mask) == (0.25, 0.2, 0.75, 0.8)


def test_free_scenes_hold_what_layouts_want() -> None:
    drawn = scenes([], range(60))
    assert np.array_equal(np.asarray(drawn[7].picture), np.asarray(free_scene(7).picture))
    counts = [len(scene.products) for scene in drawn]
    assert set(counts) == {1, 2, 3, 4}
    assert any(len({p.kind for p in scene.products}) < len(scene.products) for scene in drawn)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for scene in drawn for _, b in scene.boxes()]
    assert min(areas) < 0.086
    assert max(areas) > 0.34


def flat(kind: str, score: float, rows: slice, columns: slice, kinds: np.ndarray) -> None:
    kinds[CLASSES.index(kind), rows, columns] = score


def test_patches_become_detections() -> None:
    kinds = np.full((NOTHING + 1, 64, 64), 0.0, dtype=np.float32)
    kinds[NOTHING] = 0.4
    flat("mug", 0.8, slice(8, 24), slice(0, 32), kinds)
    flat("hat", 0.9, slice(8, 10), slice(0, 32), kinds)  # an eighth of the mug's patch: gives way
    flat("mug", 0.5, slice(40, 48), slice(40, 64), kinds)
    flat("shoe", 0.7, slice(48, 56), slice(40, 64), kinds)  # half of a patch: stands
    flat("hat", 0.6, slice(0, 4), slice(60, 63), kinds)  # as many pixels as count
    flat("hat", 0.9, slice(60, 62), slice(0, 5), kinds)  # too few
    colours = np.zeros((len(COLOURS), 64, 64), dtype=np.float32)
    red, teal = sorted(COLOURS).index("red"), sorted(COLOURS).index("teal")
    colours[red, :, :16] = colours[teal, :, 16:] = 1.0
    assert SMALLEST == 12
    found = [(d.label, d.box, round(d.score, 4), d.colour) for d in _found(kinds, colours)]
    assert sorted(found) == [
        ("hat", (0.9375, 0.0, 0.984375, 0.0625), 0.6, "teal"),
        ("mug", (0.0, 0.125, 0.25, 0.375), 0.8, "red"),  # one mug beside another
        ("mug", (0.25, 0.125, 0.5, 0.375), 0.8, "teal"),
        ("mug", (0.625, 0.625, 1.0, 0.75), 0.5, "teal"),
        ("shoe", (0.625, 0.75, 1.0, 0.875), 0.7, "teal"),
    ]
    assert [one[2] for one in found] == [0.8, 0.8, 0.7, 0.6, 0.5]


def test_the_weights_are_small_and_read_any_size(detector: StudioDetector) -> None:
    assert WEIGHTS.stat().st_size < 1e6
    assert detector([]) == []
    scene = wild_scene(Shot("wild", 64, module.HELD_OUT_SEED, 3))
    small, large = detector([scene.picture, scene.picture.resize((192, 192), Image.Resampling.BICUBIC)])
    assert [d.label for d in small] == [d.label for d in large] != []
    sure = StudioDetector(detector.reader, min_score=0.99)([scene.picture])[0]
    assert sure == [d for d in small if d.score >= 0.99]
    assert all(iou(a.box, b.box) > 0.85 for a, b in zip(small, large, strict=True))


@pytest.mark.parametrize(
    ("shots", "free", "recall", "mean_iou"),
    [(120, 0, 0.91, 0.85), (0, 120, 0.88, 0.8)],
    ids=["wild look", "free scenes"],
)
def test_it_finds_the_products_of_scenes_it_has_not_seen(
    detector: StudioDetector, shots: int, free: int, recall: float, mean_iou: float
) -> None:
    wild = [Shot("wild", 64, module.HELD_OUT_SEED, i) for i in range(shots)]
    found = held_out_scores(detector, scenes(wild, range(HELD_OUT, HELD_OUT + free)))
    assert found["all: recall"] >= recall
    assert found["all: mean IoU"] >= mean_iou
    assert found["precision"] >= 0.75
    assert found["colour right of those found"] >= 0.98


def test_the_figures_are_counted_as_they_say() -> None:
    scene = wild_scene(Shot("wild", 64, 5, 0))
    ((product, box),) = scene.boxes()[:1]

    class Fixed(StudioDetector):
        def __init__(self) -> None:
            pass

        def __call__(self, pictures):
            right = module.Detection(product.kind, box, 0.9, product.colour)
            wrong = module.Detection(product.kind, (0, 0, 0.01, 0.01), 0.9, product.colour)
            return [[right, wrong, wrong]] + [[]] * (len(pictures) - 1)

    wanted = len(scene.boxes())
    told = held_out_scores(Fixed(), [scene])
    assert told["all: instances"] == wanted
    assert told["all: recall"] == round(1 / wanted, 4)
    assert told["precision"] == round(1 / 3, 4)
    assert told["colour right of those found"] == 1.0


def test_it_reads_what_the_tiny_base_paints(detector: StudioDetector) -> None:
    pipeline = load_pipeline(TINY_BASE, torch_dtype=torch.float32)
    products = [Product(kind, colour) for kind, colour in zip(CLASSES, sorted(COLOURS), strict=False)]
    found = detector(generate(pipeline, [product.words() for product in products]))
    told = [(product.kind, product.colour) in {(d.label, d.colour) for d in own}
            for product, own in zip(products, found, strict=True)]  # fmt: skip
    assert sum(told) >= 6


def test_one_command_trains_it_and_prints_its_figures(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(module, "WEIGHTS", tmp_path / "weights.safetensors")
    module.main(tmp_path / "work", steps=2, pictures=12, held_out=4)
    told = capsys.readouterr().out
    assert "wild look: {" in told
    assert "free scenes: {" in told
    assert told.count('"all: mean IoU"') == 2
    reader = load_studio_detector().reader
    assert reader(torch.zeros(2, 3, 64, 64)).shape == (2, NOTHING + 1 + len(COLOURS), 64, 64)
    untrained = SceneReader().state_dict()
    assert all(value.shape == untrained[name].shape for name, value in load_file(module.WEIGHTS).items())

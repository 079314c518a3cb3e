"""Boxes found against boxes wanted: IoU by counting, success by size, detectors of transformers' form."""

import io
import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onbrand.evaluation import (
    Detection,
    Wanted,
    iou,
    layout_scores,
    layout_table,
    load_detector,
    success_rate,
    wanted_of,
)
from onbrand.evaluation.detection import best_iou, count_scores, size_bin
from onbrand.evaluation.hub_detector import resized
from PIL import Image
from rich.console import Console
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    ResNetConfig,
    YolosConfig,
    YolosForObjectDetection,
)
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
from transformers.models.yolos.image_processing_pil_yolos import YolosImageProcessorPil

CELLS = 12
edge = st.integers(0, CELLS - 1)


@st.composite
def boxes(draw):
    x0, y0 = draw(edge), draw(edge)
    return x0, y0, draw(st.integers(x0 + 1, CELLS)), draw(st.integers(y0 + 1, CELLS))


def painted(box):
    cells = np.zeros((CELLS, CELLS), dtype=bool)
    cells[box[1] : box[3], box[0] : box[2]] = True
    return cells


@given(boxes(), boxes())
def test_iou_counts_cells(first, second):
    a, b = painted(first), painted(second)
    assert iou(first, second) == pytest.approx((a & b).sum() / (a | b).sum())
    assert iou(first, second) == iou(second, first)


def test_a_box_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"box must be x0, y0, x1, y1 with .*, got \(0.5, 0, 0.5, 1\)"):
        iou((0, 0, 1, 1), (0.5, 0, 0.5, 1))


def test_success_is_the_share_above_the_threshold():
    assert success_rate([0.2, 0.5, 0.51, 1.0]) == 0.5
    assert success_rate([0.2, 0.5, 0.51, 1.0], threshold=0.1) == 1.0
    with pytest.raises(ValueError, match="ious must be at least one, got none"):
        success_rate([])


@pytest.mark.parametrize(("side", "name"), [(149, "small"), (151, "medium"), (298, "medium"), (300, "large")])
def test_sizes_are_those_of_squares_at_512(side, name):
    assert size_bin((0, 0, side / 512, side / 512)) == name


HALF, QUARTER = (0.0, 0.0, 0.5, 1.0), (0.0, 0.0, 0.5, 0.5)


def test_the_best_detection_with_the_label_and_colour_counts():
    found = [
        Detection("mug", QUARTER, 0.9),
        Detection("mug", (0, 0, 0.5, 0.9), 0.4, "red"),
        Detection("hat", HALF, 1.0, "red"),
        Detection("mug", HALF, 0.8, "blue"),
    ]
    assert best_iou(Wanted("mug", HALF), found) == 1.0
    assert best_iou(Wanted("mug", HALF, "red"), found) == pytest.approx(0.9)
    assert best_iou(Wanted("mug", HALF, "red"), found, min_score=0.5) == 0.5  # of no told colour
    assert best_iou(Wanted("shoe", HALF), found) == 0.0


def test_scores_by_size_of_the_box_wanted():
    small, large = (0.0, 0.0, 0.25, 0.25), (0.0, 0.0, 1.0, 0.5)
    wanted = [[Wanted("mug", small), Wanted("hat", large)], [Wanted("mug", small)], [Wanted("hat", QUARTER)]]
    found = [[Detection("mug", small, 1.0), Detection("hat", QUARTER, 1.0)], [], [Detection("hat", large, 1)]]
    scores = layout_scores(found, wanted)
    assert {name: (score.n, score.success, score.mean_iou) for name, score in scores.items()} == {
        "all": (4, 0.25, 0.5),
        "small": (2, 0.5, 0.5),
        "medium": (1, 0.0, 0.5),
        "large": (1, 0.0, 0.5),
    }
    assert scores["all"].standard_error == pytest.approx((0.25 * 0.75 / 4) ** 0.5)
    assert layout_scores(found, wanted, threshold=0.4)["all"].success == 0.75
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(layout_table({"plain": {"all": scores["all"]}, "swap": scores}, title="Boxes"))
    told = console.export_text()
    for part in (
        "Boxes",
        "plain",
        "swap",
        "medium",
        "25.0% ± 21.7%",
        "0.500 (n = 4)",
        "success: IoU above .5",
    ):
        assert part in told


def test_scores_by_the_number_of_instances_wanted():
    thin = (0.0, 0.0, 0.1, 1.0)
    wanted = [[Wanted("mug", HALF, "red")], [Wanted("mug", HALF), Wanted("hat", thin)], [Wanted("hat", HALF)]]
    found = [
        [Detection("mug", HALF, 1.0, "blue")],
        [Detection("mug", QUARTER, 1.0), Detection("hat", thin, 1.0)],
        [Detection("hat", HALF, 1.0)],
    ]
    scores = count_scores(found, wanted)
    assert {count: (score.n, score.success, score.mean_iou) for count, score in scores.items()} == {
        1: (2, 0.5, 0.5),
        2: (2, 0.5, 0.75),
    }
    assert list(count_scores(found[::-1], wanted[::-1])) == [1, 2]
    assert count_scores(found, wanted, threshold=0.4)[2].success == 1.0
    without_thin = count_scores(found, wanted, min_side=0.1 + 1e-9)
    assert (without_thin[2].n, without_thin[2].success, without_thin[1]) == (1, 0.0, scores[1])
    assert count_scores(found, wanted, min_side=0.1) == scores
    with pytest.raises(ValueError, match=r"an instance of at least min_side 1.1, got none"):
        count_scores(found, wanted, min_side=1.1)
    with pytest.raises(ValueError, match="must be a list for each of 3 pictures asked for, got 1"):
        count_scores(found[:1], wanted)


def test_scores_of_nothing_are_refused():
    with pytest.raises(ValueError, match="must be a list for each of 2 pictures asked for, got 1"):
        layout_scores([[]], [[], []])
    with pytest.raises(ValueError, match="wanted must hold at least one instance, got none"):
        layout_scores([[]], [[]])


@dataclass
class Plan:
    boxes: tuple
    unit: str = "fraction"


def test_layouts_are_read_by_the_detectors_words():
    labels, colours = ["hat", "table", "table lamp"], ["red", "blue"]
    plan = Plan((("a Red dotted hat", HALF), ("table lamp", QUARTER), ("blue table", QUARTER)))
    assert wanted_of(plan, labels, colours=colours) == [
        Wanted("hat", HALF, "red"), Wanted("table lamp", QUARTER), Wanted("table", QUARTER, "blue"),
    ]  # fmt: skip
    assert wanted_of(plan, labels)[0].colour is None
    with pytest.raises(ValueError, match="concept must name one of hat, table, table lamp, got 'hatstand'"):
        wanted_of(Plan((("hatstand", HALF),)), labels)
    with pytest.raises(ValueError, match="unit of a layout to be scored must be fraction, got 'latent'"):
        wanted_of(Plan(plan.boxes, "latent"), labels)


def small_yolos():
    config = YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[32, 48],
        patch_size=16, num_detection_tokens=5, id2label={0: "mug", 1: "hat"}, label2id={"mug": 0, "hat": 1},
    )  # fmt: skip
    return YolosForObjectDetection(config)


def small_detr():
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    config = DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone,
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16,
        encoder_attention_heads=2, decoder_attention_heads=2, num_queries=6, id2label={0: "mug", 1: "hat"},
        label2id={"mug": 0, "hat": 1},
    )  # fmt: skip
    return DetrForObjectDetection(config)


KINDS = {"yolos": (small_yolos, YolosImageProcessorPil), "detr": (small_detr, DetrImageProcessorPil)}
SMALL = {"shortest_edge": 40, "longest_edge": 60}


@pytest.fixture(params=list(KINDS))
def saved(request, tmp_path):
    make, processor = KINDS[request.param]
    torch.manual_seed(0)
    model = make().eval()
    model.save_pretrained(tmp_path)
    preparing = processor(size=SMALL)
    preparing.save_pretrained(tmp_path)
    return tmp_path, model, preparing


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


@torch.no_grad()
def test_detections_are_those_of_transformers(saved):
    folder, model, preparing = saved
    detector = load_detector(folder, min_score=0.2)
    assert detector.labels == ("mug", "hat")
    pictures = [picture(70, 50), picture(50, 70, 1), picture(64, 64, 2), picture(120, 60, 3)]
    for one, found in zip(pictures, detector(pictures), strict=True):
        output = model(**preparing(one, return_tensors="pt"))
        (expected,) = preparing.post_process_object_detection(output, threshold=0.2)
        order = expected["scores"].argsort(descending=True)
        assert len(found) == len(order) > 0
        assert [d.score for d in found] == pytest.approx(expected["scores"][order].tolist(), abs=1e-4)
        assert [d.label for d in found] == [("mug", "hat")[i] for i in expected["labels"][order]]
        assert all(isinstance(d, Detection) and d.colour is None for d in found)
        torch.testing.assert_close(
            torch.tensor([d.box for d in found]), expected["boxes"][order].clamp(0, 1), atol=1e-4, rtol=0
        )


def test_unsure_detections_are_left_out(saved):
    everything, (some,) = load_detector(saved[0], min_score=0.0), load_detector(saved[0])([picture(60, 40)])
    kept = [d for d in everything([picture(60, 40)])[0] if d.score >= 0.5]
    assert some == kept


def test_labels_without_one_for_nothing_have_their_own_probabilities(saved):
    detector = load_detector(saved[0], min_score=0.0)

    class Bare:
        config, device, dtype = detector.model.config, "cpu", torch.float32

        def __call__(self, pixel_values):
            self.logits = torch.tensor([[[2.0, -1.0], [-3.0, 1.0], [0.0, 0.5]]])
            self.pred_boxes = torch.tensor(
                [[[0.5, 0.5, 1.2, 0.4], [0.25, 0.75, 0.5, 0.5], [1.5, 0.5, 0.2, 0.2]]]
            )
            return self

    (found,) = type(detector)(Bare(), detector.labels, SMALL, min_score=0.1)([picture(60, 40)])
    assert [(d.label, round(d.score, 3)) for d in found] == [("mug", 0.881), ("hat", 0.731)]
    np.testing.assert_allclose([d.box for d in found], [(0, 0.3, 1, 0.7), (0, 0.5, 0.5, 1)], atol=1e-6)


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (500, 500), (1400, 300), (333, 1000), (37, 41)])
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_resized_as_transformers_does(kind, size):
    edges = {"shortest_edge": 96, "longest_edge": 160}
    expected = KINDS[kind][1](size=edges, do_pad=False)(picture(*size), return_tensors="pt").pixel_values
    assert resized(size, edges, multiple=16 if kind == "yolos" else 1) == tuple(expected.shape[:1:-1])
    assert resized(size, {"height": 24, "width": 32}) == (32, 24)


def test_what_is_no_detector_is_refused(saved, tmp_path):
    with pytest.raises(ValueError, match=r"detector must be an object detection model .*, got .*nowhere"):
        load_detector(tmp_path / "nowhere")
    file = saved[0] / "preprocessor_config.json"
    stored = json.loads(file.read_text())
    file.write_text(json.dumps(stored | {"size": {"max_height": 3, "max_width": 3}}))
    with pytest.raises(
        ValueError, match=r"must have height and width, or shortest_edge, got {'max_height': 3"
    ):
        load_detector(saved[0])
    file.write_text(json.dumps(stored | {"size": 40, "max_size": 60}))
    assert load_detector(saved[0]).size == SMALL
    file.unlink()
    with pytest.raises(ValueError, match=r"with its preprocessor_config.json, got "):
        load_detector(saved[0])

"""Condition pictures: from which columns, what is dropped, aligned with their pictures."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onbrand.data import Catalogue, ImageTransform, Picture, load_catalogue
from PIL import Image


@pytest.fixture(autouse=True)
def _isolated(monkeypatch, tmp_path_factory):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def picture(colour: str, height: int = 32, width: int = 32) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def shop(folder: Path, **changes: Image.Image | bytes | None) -> Path:
    """Three pictures with a depth map each, in folders of their own; changes: of the second row's map."""
    (folder / "images").mkdir(parents=True)
    (folder / "depth").mkdir()
    rows = []
    for i, colour in enumerate(("red", "lime", "blue")):
        picture(colour).save(folder / "images" / f"{i}.png")
        picture("gray").save(folder / "depth" / f"{i}.png")
        rows.append(
            {"file_name": f"images/{i}.png", "depth_file_name": f"depth/{i}.png", "text": f"a {colour} mug"}
        )
    if "depth" in changes:
        change = changes["depth"]
        if change is None:
            rows[1]["depth_file_name"] = None
        elif isinstance(change, bytes):
            (folder / "depth" / "1.png").write_bytes(change)
        else:
            change.save(folder / "depth" / "1.png")
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def load(source, **settings) -> Catalogue:
    return load_catalogue(source, progress=False, **{"condition_column": "depth"} | settings)


def test_image_folder(tmp_path):
    catalogue = load(shop(tmp_path))
    assert len(catalogue) == 3
    assert catalogue.has_conditions
    assert catalogue.class_names == ["product"]
    assert catalogue.condition(1).getpixel((0, 0)) == (128, 128, 128)
    assert catalogue.condition(1).mode == "RGB"
    assert catalogue.image(1).getpixel((0, 0)) == (0, 255, 0)


@pytest.mark.parametrize("form", ["struct", "bytes", "paths"])
def test_parquet(tmp_path, form):
    images = [picture(colour) for colour in ("red", "lime")]
    maps = [picture(colour) for colour in ("gray", "white")]
    for i, image in enumerate(maps):
        image.save(tmp_path / f"{i}.png")
    cells = {
        "struct": [{"bytes": png(image), "path": None} for image in maps],
        "bytes": [png(image) for image in maps],
        "paths": [f"{i}.png" for i in range(2)],
    }[form]
    table = pa.table({"image": [png(image) for image in images], "depth": cells, "text": ["one", "two"]})
    pq.write_table(table, tmp_path / "shop.parquet")
    catalogue = load(tmp_path / "shop.parquet")
    assert [catalogue.condition(i).getpixel((0, 0)) for i in range(2)] == [(128,) * 3, (255,) * 3]


def test_pictures_of_one_row_share_its_condition(tmp_path):
    table = pa.table(
        {
            "image": [png(picture("red"))],
            "back": [png(picture("lime"))],
            "depth": [png(picture("gray"))],
            "text": ["a mug"],
        }
    )
    pq.write_table(table, tmp_path / "shop.parquet")
    catalogue = load(tmp_path, image_columns=["image", "back"])
    assert catalogue.rows == [0, 0]
    assert [catalogue.condition(i).getpixel((0, 0)) for i in range(2)] == [(128,) * 3] * 2


def test_conditions_stay_with_their_pictures_and_out_of_everything_else(tmp_path):
    source = shop(tmp_path)
    picture("white").save(source / "depth" / "2.png")
    catalogue, plain = load(source), load(source, condition_column=None)
    assert catalogue.subset([2]).condition(0).getpixel((0, 0)) == (255, 255, 255)
    assert [catalogue.fingerprint(i) for i in range(3)] == [plain.fingerprint(i) for i in range(3)]
    assert catalogue.captions == plain.captions
    assert not plain.has_conditions
    assert not catalogue.subset([]).has_conditions
    with pytest.raises(
        ValueError,
        match=r"picture metadata.jsonl:1 images/0.png must be readable, got no condition picture",
    ):
        plain.condition(0)


SHAPE = "a condition picture of 48 x 32 for 32 x 32 pixels"


@pytest.mark.parametrize(
    ("depth", "reason"),
    [
        (None, "no condition picture"),
        (b"", "an empty file (condition picture)"),
        (png(picture("gray"))[:60], "a damaged or truncated image (condition picture)"),
        (picture("gray", 48, 32), SHAPE),
    ],
)
def test_unusable_conditions_are_dropped_with_a_reason(tmp_path, depth, reason):
    catalogue = load(shop(tmp_path, depth=depth))
    assert catalogue.rows == [0, 2]
    assert catalogue.dropped == [("metadata.jsonl:2 images/1.png", reason)]


def test_an_empty_parquet_cell_is_no_condition_picture(tmp_path):
    image = png(picture("red"))
    table = pa.table({"image": [image, image], "depth": [None, image], "text": ["one", "two"]})
    pq.write_table(table, tmp_path / "shop.parquet")
    catalogue = load(tmp_path)
    assert catalogue.captions == ["two"]
    assert [reason for _, reason in catalogue.dropped] == ["no condition picture"]


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (b"", r"images/1\.png must be readable, got an empty file \(condition picture\)"),
        (
            picture("gray", 48, 32),
            rf"images/1\.png must have its condition picture's aspect ratio, got {SHAPE}",
        ),
    ],
)
def test_unusable_conditions_are_fatal_if_asked_to(tmp_path, depth, message):
    with pytest.raises(ValueError, match=message):
        load(shop(tmp_path, depth=depth), on_bad_image="error")


def test_the_aspect_ratio_may_be_off_by_one_percent(tmp_path):
    pictures = [png(picture("red", 200, 200))] * 3
    maps = [png(picture("gray", *size)) for size in ((100, 100), (101, 100), (102, 100))]
    table = pa.table({"image": pictures, "depth": maps, "text": ["same", "close", "far"]})
    pq.write_table(table, tmp_path / "shop.parquet")
    assert load(tmp_path).captions == ["same", "close"]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("detph", r"condition column must be one of .*, got 'detph'; did you mean 'depth'\?"),
        ("shelf", "condition column 'shelf' must hold images, bytes or paths, got"),
    ],
)
def test_wrong_columns(tmp_path, column, message):
    image = png(picture("red"))
    pq.write_table(
        pa.table({"image": [image], "depth": [image], "shelf": [3], "text": ["a"]}), tmp_path / "shop.parquet"
    )
    with pytest.raises(ValueError, match=message):
        load(tmp_path, condition_column=column)


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_the_transform_aligns_a_condition_with_its_picture(fit):
    """A bright square of the picture lies where the condition, at half the size, has it."""
    pixels = np.zeros((120, 80, 3), dtype=np.uint8)
    pixels[24:72, 16:40] = 255
    image = Image.fromarray(pixels)
    catalogue = Catalogue([Picture(image, "text", condition=image.resize((40, 60), Image.Resampling.BOX))])
    transform = ImageTransform(48, 48, fit=fit, backdrop="black")
    one, other = (
        np.asarray(transform.resize(part)).mean(-1) > 127
        for part in (catalogue.image(0), catalogue.condition(0))
    )
    assert one.sum() > 50
    assert (one == other).mean() > 0.97

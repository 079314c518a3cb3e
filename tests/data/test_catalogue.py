"""Catalogues of every form: what is kept, how it is called, what is dropped and why."""

import csv
import io
import json
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onbrand.data import Catalogue, Picture, catalogue_table, load_catalogue
from PIL import Image
from rich.console import Console

COLOURS = ("red", "lime", "blue", "white", "black", "gold")


@pytest.fixture(autouse=True)
def _isolated(monkeypatch, tmp_path_factory):
    """No network, and the parquet cache of `datasets` in a folder of this test's."""

    def refuse(*_):
        raise AssertionError("a local catalogue must not touch the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def paint(path: Path, colour: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), colour).save(path)
    return path


def write_jsonl(folder: Path, rows: list[dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def shop(folder: Path, **changes) -> Path:
    """Four pictures of two classes with metadata.jsonl; changes: of the second row."""
    rows = []
    for i, colour in enumerate(COLOURS[:4]):
        paint(folder / "images" / f"{i}.png", colour)
        kind = "mug" if i < 2 else "shoe"
        rows.append({"file_name": f"images/{i}.png", "text": f"a {colour} {kind}", "kind": kind})
    rows[1] |= changes
    return write_jsonl(folder, rows)


def load(source, **settings) -> Catalogue:
    return load_catalogue(source, progress=False, **settings)


def pixel(catalogue: Catalogue, index: int) -> tuple:
    return catalogue.image(index).getpixel((16, 16))


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_jsonl(tmp_path):
    catalogue = load(shop(tmp_path), class_column="kind", class_prefixes={"mug": "studio photo"})
    assert len(catalogue) == 4
    assert catalogue.class_names == ["mug", "shoe"]
    assert catalogue.class_ids.tolist() == [0, 0, 1, 1]
    assert catalogue.prefixes == {"mug": "studio photo", "shoe": ""}
    assert catalogue.captions == [
        "studio photo, a red mug",
        "studio photo, a lime mug",
        "a blue shoe",
        "a white shoe",
    ]
    assert catalogue.origins[1] == "metadata.jsonl:2 images/1.png"
    assert [pixel(catalogue, i) for i in range(3)] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert catalogue.image_bytes(1) == (tmp_path / "images" / "1.png").read_bytes()
    assert catalogue.attributes == [{}] * 4
    assert catalogue.dropped == []


def test_csv_counts_lines_from_its_header(tmp_path):
    paint(tmp_path / "a.png", "red")
    paint(tmp_path / "b.png", "blue")
    with (tmp_path / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["file_name", "caption", "shelf"], ["a.png", "red, plain", 3], ["b.png", "blue", 4]]
        )
    catalogue = load(tmp_path, caption_column="caption", class_column="shelf")
    assert catalogue.captions == ["red, plain", "blue"]
    assert catalogue.class_names == ["3", "4"]
    assert catalogue.origins == ["metadata.csv:2 a.png", "metadata.csv:3 b.png"]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_text_stays_as_it_is_written(tmp_path, kind):
    """Codes are no numbers, NA is a size, a date has no midnight."""
    rows = [
        ("a.png", "NA", "001"),
        ("b.png", "null", "1"),
        ("c.png", "1.0", "2024-01-01"),
        ("d.png", "", "1"),
    ]
    for (name, *_), colour in zip(rows, COLOURS, strict=False):
        paint(tmp_path / name, colour)
    columns = ("file_name", "text", "class")
    if kind == "csv":
        with (tmp_path / "metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
    else:
        write_jsonl(tmp_path, [dict(zip(columns, row, strict=True)) for row in rows])
    catalogue = load(tmp_path)
    assert catalogue.captions == ["NA", "null", "1.0"]
    assert [picture.class_name for picture in catalogue.pictures] == ["001", "1", "2024-01-01"]
    assert [reason for _, reason in catalogue.dropped] == ["no caption"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "metadata.csv",
            "file_name,text\na.png,red,mug\n",
            "readable as csv, got row 2 with more than its 2",
        ),
        (
            "metadata.jsonl",
            '{"file_name": "a.png"}\n\n[1]\n',
            "readable as jsonl, got line 3, which is no obj",
        ),
        ("metadata.jsonl", '{"file_name": "a.png",\n', "readable as jsonl, got line 1, which is no object"),
    ],
)
def test_metadata_that_is_broken_says_where(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_several_captions_a_row_are_none(tmp_path):
    with pytest.raises(ValueError, match="caption column 'text' must hold one text a row, got List"):
        load(write_jsonl(tmp_path, [{"file_name": "a.png", "text": ["a red mug", "a mug"]}]))


def test_a_file_that_cannot_be_read_is_dropped(tmp_path, monkeypatch):
    denied, read_bytes = shop(tmp_path) / "images" / "2.png", Path.read_bytes

    def read(path):
        if path == denied:
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    assert [reason for _, reason in load(tmp_path).dropped] == [
        "a file that cannot be read (Permission denied)"
    ]


@pytest.mark.parametrize("form", ["struct", "bytes", "paths"])
def test_parquet(tmp_path, form):
    cells = {
        "struct": [{"bytes": png(colour), "path": None} for colour in COLOURS[:2]],
        "bytes": [png(colour) for colour in COLOURS[:2]],
        "paths": [paint(tmp_path / f"{colour}.png", colour).name for colour in COLOURS[:2]],
    }[form]
    file = tmp_path / "shop.parquet"
    pq.write_table(pa.table({"photo": cells, "text": ["one", "two"]}), file)
    catalogue = load(file, image_columns=["photo"])
    assert catalogue.captions == ["one", "two"]
    assert catalogue.class_names == ["product"]
    assert [pixel(catalogue, i) for i in range(2)] == [(255, 0, 0), (0, 255, 0)]
    assert catalogue.origins[1].startswith("shop.parquet:2 ")


def test_parquet_files_and_folders_are_chained(tmp_path):
    for i, colour in enumerate(COLOURS[:2]):
        pq.write_table(pa.table({"image": [png(colour)], "text": [colour]}), tmp_path / f"{i}.parquet")
    for source in (tmp_path, [tmp_path / "0.parquet", tmp_path / "1.parquet"]):
        catalogue = load(source)
        assert catalogue.captions == ["red", "lime"]
        assert catalogue.rows == [0, 1]


def test_a_parquet_picture_without_content_is_dropped(tmp_path):
    cells = [{"bytes": b"", "path": "a.png"}, None, {"bytes": png("red"), "path": None}]
    pq.write_table(pa.table({"image": cells, "text": ["one", "two", "three"]}), tmp_path / "shop.parquet")
    catalogue = load(tmp_path)
    assert catalogue.captions == ["three"]
    assert [reason for _, reason in catalogue.dropped] == ["an empty file", "no picture"]


def test_class_labels_go_by_name(tmp_path):
    import datasets

    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "kind": datasets.ClassLabel(names=["mug", "shoe"]),
        }
    )
    rows = {"image": [{"bytes": png("red"), "path": None}] * 2, "text": ["a", "b"], "kind": [1, 0]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "shop.parquet")
    catalogue = load(tmp_path, class_column="kind")
    assert [catalogue.class_names[i] for i in catalogue.class_ids] == ["shoe", "mug"]


def test_plain_folder_takes_class_and_caption_from_names(tmp_path):
    for name in (
        "mugs/red-striped_mug_01.png",
        "mugs/IMG_0012.png",
        "running shoes/DSC0001.PNG",
        ".trash/a.png",
    ):
        paint(tmp_path / name, "red")
    (tmp_path / "LICENSE").write_text("none")
    catalogue = load(tmp_path)
    assert catalogue.class_names == ["mugs", "running shoes"]
    assert catalogue.captions == ["mugs", "red striped mug", "running shoes"]
    assert catalogue.origins[1] == "mugs/red-striped_mug_01.png"


def test_plain_folder_without_subfolders_is_one_class(tmp_path):
    paint(tmp_path / "red mug.png", "red")
    paint(tmp_path / "0001.png", "red")
    catalogue = load(tmp_path)
    assert (catalogue.class_names, catalogue.captions) == (["product"], ["red mug"])
    assert catalogue.dropped == [("0001.png", "no caption")]


def test_a_folder_called_train_is_a_class_like_any_other(tmp_path):
    for name in ("train/red engine.png", "test/tube.png", "dress [silk]/gown.png"):
        paint(tmp_path / name, "red")
    assert load(tmp_path).class_names == ["dress [silk]", "test", "train"]


def test_folders_are_classes_only_where_there_are_several(tmp_path):
    assert load(shop(tmp_path / "one")).class_names == ["product"]
    folder = tmp_path / "shop [2]"
    for kind in ("mugs", "shoes"):
        paint(folder / kind / "a.png", "red")
        write_jsonl(folder / kind, [{"file_name": "a.png", "text": kind}])
    catalogue = load(folder)
    assert catalogue.class_names == ["mugs", "shoes"]
    assert catalogue.rows == [0, 1]
    assert catalogue.origins == ["mugs/metadata.jsonl:1 a.png", "shoes/metadata.jsonl:1 a.png"]


def pairs(folder: Path, count: int = 3) -> Path:
    """Rows with a garment and the model who wears it; `worn_file_name` comes first on purpose."""
    rows = []
    for i in range(count):
        paint(folder / f"worn{i}.png", "blue")
        paint(folder / f"garment{i}.png", "red")
        rows.append({"worn_file_name": f"worn{i}.png", "file_name": f"garment{i}.png", "text": f"dress {i}"})
    return write_jsonl(folder, rows)


def test_several_pictures_share_a_caption_each_with_its_class_and_prefix(tmp_path):
    catalogue = load(
        pairs(tmp_path),
        image_columns=["image", "worn"],
        image_classes={"image": "garment", "worn": "model"},
        class_prefixes={"garment": "flat lay", "model": "worn by a model"},
    )
    assert catalogue.captions[:2] == ["flat lay, dress 0", "worn by a model, dress 0"]
    assert [catalogue.class_names[i] for i in catalogue.class_ids[:2]] == ["garment", "model"]
    assert catalogue.rows == [0, 0, 1, 1, 2, 2]
    assert [pixel(catalogue, i) for i in range(2)] == [(255, 0, 0), (0, 0, 255)]


def test_image_classes_leave_other_columns_their_own_class(tmp_path):
    rows = [json.loads(line) for line in (pairs(tmp_path) / "metadata.jsonl").read_text().splitlines()]
    rows[1]["worn_file_name"] = None
    write_jsonl(tmp_path, [row | {"kind": "dress"} for row in rows])
    catalogue = load(
        tmp_path, image_columns=["image", "worn"], image_classes={"worn": "model"}, class_column="kind"
    )
    assert catalogue.class_names == ["dress", "model"]
    assert catalogue.rows == [0, 0, 1, 2, 2]
    assert catalogue.dropped == [("metadata.jsonl:2 worn", "no picture")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"caption_column": "txet"},
         r"caption column must be one of \['image', 'kind', 'text'\], got 'txet'; did you mean 'text'\?"),
        ({"class_column": "kinds"}, r"class column must be one of .*, got 'kinds'; did you mean 'kind'"),
        ({"image_columns": ["iamge"]}, r"image column must be one of .*, got 'iamge'; did you mean 'image'"),
        ({"image_classes": {"imag": "a"}}, r"of image_classes must be one of \['image'\], got 'imag'; did"),
        ({"class_column": "kind", "class_prefixes": {"mgu": "a"}},
         r"class of class_prefixes must be one of \['mug', 'shoe'\], got 'mgu'; did you mean 'mug'"),
        ({"on_bad_image": "ignore"}, r"on_bad_image must be one of \('drop', 'error'\), got 'ignore'"),
        ({"backdrop": "wihte"}, "backdrop must be a colour"),
    ],
)  # fmt: skip
def test_wrong_settings(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        load(shop(tmp_path), **settings)


def test_a_column_of_numbers_holds_no_pictures(tmp_path):
    pq.write_table(pa.table({"image": [1, 2], "text": ["a", "b"]}), tmp_path / "shop.parquet")
    with pytest.raises(ValueError, match="image column 'image' must hold images, bytes or paths, got"):
        load(tmp_path)


def test_pictures_lie_inside_the_folder(tmp_path):
    paint(tmp_path / "secret.png", "red")
    for name in ("../secret.png", str(tmp_path / "secret.png")):
        source = write_jsonl(tmp_path / "shop", [{"file_name": name, "text": "a"}])
        with pytest.raises(
            ValueError, match=r"picture paths in metadata\.jsonl must lie inside its folder, got"
        ):
            load(source)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"text": " "}, "no caption"), ({"text": None}, "no caption"), ({"kind": None}, "no class"),
     ({"file_name": None}, "no picture"), ({"file_name": "images/9.png"}, "no such file")],
)  # fmt: skip
def test_incomplete_rows_are_dropped_with_a_reason(tmp_path, change, reason):
    catalogue = load(shop(tmp_path, **change), class_column="kind")
    assert catalogue.rows == [0, 2, 3]
    [(origin, why)] = catalogue.dropped
    assert why == reason
    assert origin.startswith("metadata.jsonl:2 ")


def test_unreadable_pictures_are_dropped_or_fatal(tmp_path):
    source = shop(tmp_path)
    (tmp_path / "images" / "1.png").write_bytes(b"")
    (tmp_path / "images" / "2.png").write_bytes(png("red")[:60])
    catalogue = load(source)
    assert catalogue.rows == [0, 3]
    assert catalogue.dropped == [
        ("metadata.jsonl:2 images/1.png", "an empty file"),
        ("metadata.jsonl:3 images/2.png", "a damaged or truncated image"),
    ]
    with pytest.raises(
        ValueError, match=r"picture metadata\.jsonl:2 images/1\.png must be readable, got an empty file"
    ):
        load(source, on_bad_image="error")


def test_empty_catalogues(tmp_path):
    (tmp_path / "none").mkdir()
    bad = shop(tmp_path / "bad")
    for file in (bad / "images").iterdir():
        file.write_bytes(b"")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "metadata.jsonl").write_bytes(b"")
    for source, count in ((tmp_path / "none", 0), (bad, 4), (empty, 0)):
        with pytest.raises(ValueError, match=f"must hold a usable picture, got {count} unusable ones"):
            load(source)


def test_sources_that_are_none(tmp_path):
    with pytest.raises(
        ValueError, match=r"catalogue source must be an existing folder of pictures.*got '/no/such'"
    ):
        load("/no/such")
    note = tmp_path / "note.txt"
    note.write_text("hello")
    with pytest.raises(ValueError, match=r"catalogue source must be .*note\.txt"):
        load(note)
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"catalogue .*broken\.parquet must be readable by datasets, got"):
        load(broken)
    paint(tmp_path / "two" / "a.png", "red")
    (write_jsonl(tmp_path / "two", [{"file_name": "a.png", "text": "a"}]) / "metadata.csv").write_text(
        "file_name\n"
    )
    with pytest.raises(ValueError, match="must have metadata files of one kind, got"):
        load(tmp_path / "two")


def test_a_hub_id_goes_to_the_hub(monkeypatch):
    import datasets

    asked = []

    def from_hub(name, **settings):
        asked.append((name, settings))
        return datasets.Dataset.from_dict({"image": [png("red")], "text": ["a"]})

    monkeypatch.setattr("datasets.load_dataset", from_hub)
    catalogue = load("shop/mugs", split="validation")
    assert asked == [("shop/mugs", {"split": "validation"})]
    assert catalogue.origins == ["shop/mugs:1 image"]


def test_edited_captions_are_read_anew(tmp_path):
    import os

    source = shop(tmp_path)
    assert load(source).captions[1] == "a lime mug"
    stamp = (source / "metadata.jsonl").stat()
    shop(tmp_path, text="a dark mug")
    os.utime(source / "metadata.jsonl", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert load(source).captions[1] == "a dark mug"


def test_limit_counts_rows(tmp_path):
    catalogue = load(pairs(tmp_path), image_columns=["image", "worn"], limit=2)
    assert catalogue.rows == [0, 0, 1, 1]


def test_backdrop_reaches_the_pictures(tmp_path):
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(tmp_path / "mug.png")
    white, gold = load(tmp_path), load(tmp_path, backdrop="gold")
    assert (pixel(white, 0), pixel(gold, 0)) == ((255, 255, 255), (255, 215, 0))
    assert white.fingerprint(0) != gold.fingerprint(0)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.sampled_from(("mug", "shoe", "mug+shoe", "hat")), min_size=1, max_size=40),
    held_out=st.floats(0, 0.9),
    seed=st.integers(0, 2**32),
)
def test_no_row_straddles_training_and_held_out(rows, held_out, seed):
    pictures = [
        Picture(b"", "text", name, row=row) for row, names in enumerate(rows) for name in names.split("+")
    ]
    whole = Catalogue(pictures)
    train, held = whole.split(held_out, seed)
    assert not set(train.rows) & set(held.rows)
    assert sorted(train.rows + held.rows) == whole.rows
    assert train.class_names == held.class_names == whole.class_names
    for names in set(rows):
        count, there = rows.count(names), sum(rows[row] == names for row in set(held.rows))
        assert there < count
        assert abs(there - held_out * count) <= 1
    again, _ = whole.split(held_out, seed)
    assert again.rows == train.rows


def test_splits_differ_by_seed_and_can_be_empty():
    whole = Catalogue([Picture(b"", "text", row=row) for row in range(40)])
    assert len({tuple(whole.split(0.25, seed)[1].rows) for seed in range(5)}) == 5
    assert [len(part) for part in whole.split(0, 0)] == [40, 0]
    assert [len(part) for part in whole.split(0.01, 0)] == [39, 1]
    for share in (1.0, -0.1):
        with pytest.raises(ValueError, match=f"held_out must be at least 0 and below 1, got {share}"):
            whole.split(share, 0)


def test_pictures_in_memory_and_on_demand():
    drawn = []

    def draw() -> Image.Image:
        drawn.append(1)
        return Image.new("RGB", (32, 32), "red")

    pictures = [
        Picture(draw, "a red mug", "mug", recipe="studio 32 seed 0 picture 0", attributes={"colour": "red"}),
        Picture(Image.new("L", (32, 32), 7), "a dark mug", "mug", row=1),
        Picture(png("blue"), "a blue mug", "mug", row=2),
    ]
    catalogue = Catalogue(pictures)
    assert catalogue.image_bytes(0) == b"studio 32 seed 0 picture 0"
    assert catalogue.attributes[0] == {"colour": "red"}
    assert len({catalogue.fingerprint(i) for i in range(3)}) == 3
    assert not drawn
    assert [pixel(catalogue, i) for i in range(3)] == [(255, 0, 0), (7, 7, 7), (0, 0, 255)]
    with pytest.raises(ValueError, match="picture nowhere must be readable, got no picture"):
        Picture(lambda: None, "text", origin="nowhere").open()


def test_a_class_outside_the_given_names():
    with pytest.raises(
        ValueError, match=r"class of a picture must be one of \['mug'\], got 'mugs'; did you mean 'mug'"
    ):
        Catalogue([Picture(b"", "text", "mugs")], class_names=["mug"])


def test_sizes_are_of_upright_pictures(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    for i in range(2):
        Image.new("RGB", (48, 32), COLOURS[i]).save(
            tmp_path / f"mug {COLOURS[i]}.png", exif=exif if i else None
        )
    catalogue = load(tmp_path)
    assert catalogue.captions == ["mug lime", "mug red"]
    assert catalogue.sizes == [(48, 32), (32, 48)]
    assert catalogue.subset([1]).sizes == [(32, 48)]


def test_sizes_that_loading_took_need_no_picture(tmp_path):
    catalogue = load(shop(tmp_path))
    for file in (tmp_path / "images").iterdir():
        file.unlink()
    assert catalogue.sizes == [(32, 32)] * 4


def test_sizes_of_unchecked_pictures_are_taken_once():
    opened = []

    def draw() -> Image.Image:
        opened.append(1)
        return Image.new("RGB", (40, 24))

    catalogue = Catalogue([Picture(draw, "text"), Picture(b"", "text", size=(8, 16))])
    assert not opened
    assert catalogue.sizes == catalogue.sizes == [(24, 40), (8, 16)]
    assert len(opened) == 1


@pytest.mark.parametrize("count", [2, 3])
def test_processes_divide_the_check_and_get_the_same(tmp_path, monkeypatch, together, count):
    source = shop(tmp_path)
    (tmp_path / "images" / "1.png").write_bytes(b"")
    alone, opened = load(source), []
    decode = Picture.open
    monkeypatch.setattr(Picture, "open", lambda self: opened.append(self.origin) or decode(self))
    for catalogue in together(count, lambda processes: load(source, processes=processes)):
        assert catalogue.origins == alone.origins
        assert catalogue.dropped == alone.dropped
        assert catalogue.sizes == alone.sizes
    assert sorted(opened) == sorted([*alone.origins, "metadata.jsonl:2 images/1.png"])


def test_an_unreadable_picture_is_fatal_to_all_processes(tmp_path, together):
    source = shop(tmp_path)
    for i in (1, 2):
        (tmp_path / "images" / f"{i}.png").write_bytes(b"")
    errors = together(2, lambda processes: load(source, on_bad_image="error", processes=processes))
    message = "picture metadata.jsonl:2 images/1.png must be readable, got an empty file"
    assert [str(error) for error in errors] == [message] * 2


def test_a_word_goes_before_every_prefix():
    pictures = [
        Picture(b"", "a red mug", "mug", row=0),
        Picture(b"", "a mug by <acme>, red", "mug", row=1),
        Picture(b"", "a shoe", "shoe", row=2),
        Picture(b"", "a hat like <acme>", "hat", row=3),
        Picture(b"", "a sock", "sock", row=4),
    ]
    whole = Catalogue(pictures, prefixes={"mug": "studio photo", "sock": "by <acme>"})
    catalogue = whole.prefixed("<acme>")
    assert catalogue.captions == [
        "<acme> studio photo, a red mug",
        "studio photo, a mug by <acme>, red",
        "<acme>, a shoe",
        "a hat like <acme>",
        "by <acme>, a sock",
    ]
    assert catalogue.prefixes == {
        "hat": "<acme>",
        "mug": "<acme> studio photo",
        "shoe": "<acme>",
        "sock": "by <acme>",
    }
    assert catalogue.subset([2, 1]).captions == ["<acme>, a shoe", "studio photo, a mug by <acme>, red"]
    assert catalogue.prefixed("<acme>").captions == catalogue.captions
    assert catalogue.split(0.5, 0)[0].prefixes == catalogue.prefixes
    assert whole.captions[2] == "a shoe"


def test_a_word_is_held_only_whole():
    catalogue = Catalogue([Picture(b"", "acmes"), Picture(b"", "acme's")]).prefixed("acme")
    assert catalogue.captions == ["acme, acmes", "acme's"]
    with pytest.raises(ValueError, match="word must be some text, got ' '"):
        catalogue.prefixed(" ")


def test_table_counts_kept_and_dropped(tmp_path):
    source = shop(tmp_path)
    for i in (0, 3):
        (tmp_path / "images" / f"{i}.png").write_bytes(b"")
    catalogue = load(source, class_column="kind", class_prefixes={"shoe": "[flat] lay"})
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(catalogue_table(catalogue))
    lines = [line.split("│") for line in console.export_text().splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in line[1:-1]] for line in lines]
    assert ["mug", "1", "0", ""] in cells
    assert ["shoe", "1", "0", 'captions open with "[flat] lay"'] in cells
    assert ["kept", "2", "0", ""] in cells
    assert any(
        row[:2] == ["dropped: an empty file", "2"] and "metadata.jsonl:4 images/3.png" in row[3]
        for row in cells
    )


def test_table_names_the_first_few_files():
    dropped = [(f"{i}.png", "no caption") for i in range(5)]
    catalogue = Catalogue([Picture(b"", "text", row=row) for row in range(4)], dropped=dropped)
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(catalogue_table(*catalogue.split(0.25, 0)))
    text = console.export_text()
    assert "0.png, 1.png, 2.png and 2 more" in text
    assert "3.png" not in text

"""Runs on picture folders: aspect buckets, class balance, condition columns."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from onbrand.configs import Config, ConfigError
from onbrand.inference import load_pipeline
from onbrand.train.metrics import read_metrics
from onbrand.train.prepare import open_catalogue, prepare, split_catalogue
from onbrand.train.run import run_training
from PIL import Image, ImageDraw, ImageOps
from rich.console import Console

MakeConfig = Callable[..., Config]
SHORT = {
    "train__steps": 3,
    "train__checkpoint_every": 3,
    "train__preview_every": 3,
    "train__validate_every": 3,
    "train__ema_decay": 0,
    "run__audit__pictures": 4,
    "run__audit__steps": 2,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """24 pictures of two classes, portrait and landscape, with masks and edges."""
    root = tmp_path / "catalogue"
    root.mkdir()
    rows = []
    for i in range(24):
        size = (64, 96) if i % 2 else (96, 64)
        kind, colour = ("mug", "red") if i % 3 else ("bag", "blue")
        picture, mask = Image.new("RGB", size, "white"), Image.new("L", size)
        for image, fill in ((picture, colour), (mask, "white")):
            ImageDraw.Draw(image).ellipse((20 + i % 5, 20, 44 + i % 5, 44), fill=fill)
        picture.save(root / f"{i}.png")
        mask.save(root / f"{i}_mask.png")
        rows.append(
            {
                "file_name": f"{i}.png",
                "mask_file_name": f"{i}_mask.png",
                "text": f"{colour} {kind}",
                "class": kind,
            }
        )
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


class Reached(Exception):
    """Ends a run where a test has seen enough."""


BUCKETS = {"data__buckets": "[[48, 32], [32, 48]]", "data__resolution": 32}


def test_a_run_on_two_buckets(make_config: MakeConfig, folder: Path) -> None:
    config = make_config(data__source=folder, **BUCKETS, **SHORT, start__components=1)
    run = run_training(config, console=Console(quiet=True))
    model = load_pipeline(run / "model")
    assert sorted(model.start_distribution.sizes) == [(8, 12), (12, 8)]
    for height, width in ((48, 32), (32, 48)):
        picture = model(
            "red mug", class_name="mug", height=height, width=width, num_inference_steps=2
        ).images[0]
        assert picture.size == (width, height)
    audit = json.loads((run / "audit.json").read_text())
    assert audit["n"] == 4
    assert (run / "samples" / "growth.png").exists()
    assert "held_out_loss" in read_metrics(run)[-1]


def test_start_statistics_are_those_of_the_bucket(
    make_config: MakeConfig, folder: Path, tiny_base: Path
) -> None:
    config = make_config(data__source=folder, **BUCKETS)
    model = load_pipeline(tiny_base)
    prepared = prepare(
        config,
        model,
        parts=split_catalogue(config),
        t_min=941,
        cache_dir=Path(config.data.cache_dir),
        device="cpu",
    )
    part = prepared.train
    for (height, width), rows in part.by_size(range(len(part)), range(len(part))).items():
        own = prepared.start_distribution.at(height // 4, width // 4)
        for class_id in (0, 1):
            chosen = [row for row in rows if part.catalogue.class_ids[row] == class_id]
            expected = part.cache.means(chosen).double().mean(0).float()
            torch.testing.assert_close(own.mean[class_id], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data__buckets": "[[48, 32], [32, 48], [64, 16]]"},
            r"every bucket must have pictures, got none for 64 x 16",
        ),
        (
            {"data__class_weights": "{mugg: 2}"},
            r"data.class_weights must name classes of \['bag', 'mug'\], got \['mugg'\]",
        ),
        (
            {"model__controlnet": "{condition: mask, column: maks}"},
            r"condition column must be one of .*got 'maks'; did you mean 'mask'",
        ),
        (
            {"start__components": 5, **BUCKETS},
            r"start.components must be below .* got 5 for class 'bag' with 4 at 48 x 32",
        ),
        (
            {"start__family": "dct", "start__band": 9, **BUCKETS},
            r"start.band must be at most 8, the latents' shorter side, got 9",
        ),
    ],
)
def test_bad_input_is_said_before_anything_is_encoded(
    make_config: MakeConfig, folder: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    config = make_config(data__source=folder, **changes)
    for dry_run in (True, False):
        with pytest.raises(ValueError, match=message):
            run_training(config, console=Console(quiet=True), dry_run=dry_run)
    assert not (tmp_path / "latents").exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "condition", ["{condition: mask, column: mask}", "{condition: column, column: mask}"]
)
def test_a_controlnet_is_trained_on_a_column(make_config: MakeConfig, folder: Path, condition: str) -> None:
    options = {"model__method": "frozen", "model__controlnet": condition}
    run = run_training(make_config(data__source=folder, **SHORT, **options), console=Console(quiet=True))
    model = load_pipeline(run / "model")
    changed = [p for p in model.controlnet.controlnet_down_blocks.parameters() if p.abs().max() > 0]
    assert changed  # its outputs began at zero


def test_balanced_sampling_shows_both_classes_alike(make_config: MakeConfig, folder: Path) -> None:
    config = make_config(data__source=folder, data__sampling="balanced", **SHORT)
    console = Console(record=True, width=140, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    run_training(config, console=console, dry_run=True)
    text = console.export_text()
    assert "bag 10, mug 9" in text  # of 6 bags and 13 mugs


def test_a_dry_run_shows_the_first_pictures_as_training_sees_them(
    make_config: MakeConfig, folder: Path
) -> None:
    config = make_config(data__source=folder, **BUCKETS)
    console = Console(record=True, width=140, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    run = run_training(config, console=console, dry_run=True)
    text = console.export_text()
    assert "48 x 32: " in text
    assert "embeddings on disk" in text
    assert "MiB and activations" in text
    assert not run.exists()
    picture = Image.open(run.with_name("run_dry_run.png"))
    assert picture.width > 100


def test_a_controlnet_on_two_buckets(make_config: MakeConfig, folder: Path) -> None:
    options = {"model__method": "frozen", "model__controlnet": "{condition: mask, column: mask}"}
    run = run_training(
        make_config(data__source=folder, **BUCKETS, **SHORT, **options), console=Console(quiet=True)
    )
    assert json.loads((run / "audit.json").read_text())["n"] == 4


def test_a_picture_held_out_alone_in_its_bucket_is_left_out_and_said(
    make_config: MakeConfig, folder: Path
) -> None:
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    bags = [i for i, row in enumerate(rows) if row["class"] == "bag"]
    for i in bags[1:]:  # one landscape bag is left
        Image.new("RGB", (64, 96), "white").save(folder / f"{i}.png")
    Image.new("RGB", (96, 64), "white").save(folder / f"{bags[0]}.png")
    lonely = f"{bags[0]}.png"
    for seed in range(20):
        config = make_config(data__source=folder, **BUCKETS, run__seed=seed)
        train, held_out = split_catalogue(config)
        alone = [origin for origin, reason in train.dropped if reason == "held out alone in its bucket"]
        assert not any(lonely in origin for origin in held_out.origins)
        if alone:
            assert [lonely in origin for origin in alone] == [True]
            return
    pytest.fail("no seed held the picture out")


def test_the_studio_is_limited_and_prefixed_as_any_catalogue(make_config: MakeConfig) -> None:
    whole = open_catalogue(make_config().data)
    some = open_catalogue(make_config(data__limit=9, data__class_prefixes="{mug: a cup}").data)
    assert some.origins == whole.origins[:9]
    for caption, before, picture in zip(some.captions, whole.captions, some.pictures, strict=False):
        assert caption == (f"a cup, {before}" if picture.class_name == "mug" else before)
    assert some.prefixes["mug"] == "a cup"


@pytest.mark.parametrize(
    ("part", "change"),
    [(0, "conditions"), (1, "conditions"), (1, "captions and classes")],
)
def test_a_changed_catalogue_is_noticed_by_what_was_recorded(
    make_config: MakeConfig,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: int,
    change: str,
) -> None:
    options = {"model__method": "frozen", "model__controlnet": "{condition: mask, column: mask}"}
    config = make_config(data__source=folder, **options)

    def stop(*_: object, **__: object) -> None:
        raise Reached

    monkeypatch.setattr("onbrand.train.run._train", stop)
    with pytest.raises(Reached):
        run_training(config, console=Console(quiet=True))
    row = int(Path(split_catalogue(config)[part].origins[0].split()[-1]).stem)
    if change == "captions and classes":
        file = folder / "metadata.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rows[row]["text"] += " again"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        file = folder / f"{row}_mask.png"
        ImageOps.flip(Image.open(file)).save(file)
    key = f"held out.{change}" if part else change
    with pytest.raises(ConfigError, match=rf"got {key}: '\w+' -> '\w+'$"):
        run_training(config, console=Console(quiet=True))
    recorded = tmp_path / "run" / "inputs.json"
    inputs = json.loads(recorded.read_text())
    del inputs[key.partition(".")[0]]
    recorded.write_text(json.dumps(inputs))
    with pytest.raises(Reached):
        run_training(config, console=Console(quiet=True))

"""`onbrand tickets`, and `onbrand sample --layout` with them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from onbrand.__main__ import app
from onbrand.commands import placed
from onbrand.inference.tickets.collection import TicketCollection
from onbrand.inference.tickets.layouts import Layout
from PIL import Image
from typer.testing import CliRunner

PROMPT = "a red mug and a blue bottle"
QUICK = ("--steps", 2, "--count", 2)


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refused(match: str, *arguments: object) -> None:
    with pytest.raises(ValueError, match=match):
        CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Tickets of the tiny base; treat them as read-only."""
    out = tmp_path_factory.mktemp("tickets") / "tickets"
    said = invoke(
        "tickets", "tiny-base", "--concepts", "mug, bottle", "--noises", 12, "--steps", 2, "-o", out
    )
    assert "mug" in said
    assert "12 noises of 16 blocks" in said
    return out


@pytest.fixture(scope="module")
def layout(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("layout") / "layout.json"
    Layout((("mug", (0, 0, 0.5, 1)), ("bottle", (0.5, 0, 1, 0.75)))).save(file)
    return file


def test_a_collection_is_extended_by_what_it_lacks(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "more"
    invoke("tickets", "tiny-base", "--concepts", "mug,bottle", "--noises", 4, "--steps", 2, "-o", out)
    assert sorted(file.name for file in out.iterdir()) == ["maps.png", "tickets.safetensors"]
    invoke("tickets", "tiny-base", "--concepts", "shoe", "--noises", 6, "--steps", 2, "-o", out)
    found, known = TicketCollection.load(out), TicketCollection.load(folder)
    assert (found.concepts, found.seeds) == (("mug", "bottle", "shoe"), tuple(range(6)))
    ours, theirs = (tickets.scores[:2, :2, :6].nan_to_num() for tickets in (found, known))
    assert (ours - theirs).abs().max() < 1e-5
    again = ("tickets", "tiny-base", "--concepts", "hat", "--steps", 2, "-o", out)
    refused("--steps must be 2 as in the collection that is there, got 3", *again, "--steps", 3)
    refused("--layer must be down_blocks.* as in the collection that is there", *again, "--layer", "other")
    refused("--start must be none as in the collection that is there, got mean", *again, "--start", "mean")


def test_one_concept_is_refused(tmp_path: Path) -> None:
    refused("concepts must be at least two", "tickets", "nowhere", "--concepts", "mug", "-o", tmp_path / "x")


def test_a_layout_is_followed_and_shown(folder: Path, layout: Path, tmp_path: Path) -> None:
    call = ("sample", "tiny-base", PROMPT, "--layout", layout, *QUICK)
    with_tickets = (*call, "--tickets", folder)
    invoke(*with_tickets, "-o", tmp_path / "tickets")
    row = json.loads((tmp_path / "tickets" / "samples.json").read_text())[1]
    assert (row["seed"], row["coupling"]["picture"], row["guides"]) == (0, 1, [])
    assert row["layout"]["file"] == str(layout)
    assert len(row["tickets"]["sha256"]) == 64
    for name in ("layout.jpg", "attention.jpg"):
        assert min(Image.open(tmp_path / "tickets" / name).size) > 200
    drawn = []
    # tickets that win already lie where Swap would put them, so that one is told by a noise without them
    for start in ((*with_tickets,), (*with_tickets, "--guide", "soft"), (*with_tickets, "--guide", "paint"),
                  (*call, "--guide", "swap"), (*call, "--guide", "soft")):  # fmt: skip
        out = tmp_path / f"guided {len(drawn)}"
        invoke(*start, "-o", out)
        drawn.append(np.asarray(Image.open(out / "0000.png")))
    for i, one in enumerate(drawn):
        assert all(not np.array_equal(one, other) for other in drawn[i + 1 :])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--layout", "LAYOUT"), "--layout must come with --tickets or --guide"),
        (("--tickets", "FOLDER"), "--tickets must come with --layout"),
        (("--guide", "soft"), "--guide must come with --layout, got soft alone"),
        (("--layout", "LAYOUT", "--guide", "sof"), "--guide must be one of soft, paint, swap, got 'sof'"),
        (("--layout", "none.json", "--guide", "soft"), "--layout: .*none.json"),
        (("--layout", "LAYOUT", "--tickets", "nowhere"), "--tickets: tickets must be a folder"),
    ],
)
def test_layouts_that_cannot_be_are_refused_at_once(
    folder: Path, layout: Path, options: tuple, message: str
) -> None:
    named = {"LAYOUT": str(layout), "FOLDER": str(folder)}
    refused(message, "sample", "nowhere", PROMPT, *[named.get(option, option) for option in options])


def test_pictures_of_any_size_are_shown_with_their_layout(layout: Path, tmp_path: Path) -> None:
    call = ("sample", "tiny-base", PROMPT, "--layout", layout, "--size", 72, 72, "--steps", 2, "--count", 1)
    invoke(*call, "--guide", "soft", "-o", tmp_path / "soft")
    assert (tmp_path / "soft" / "attention.jpg").exists()
    refused("--layout: --size must be multiples of 16 for --guide swap", *call, "--guide", "swap")
    pixel_boxes = tmp_path / "pixels.json"
    Layout((("mug", (0, 0, 48, 72)), ("bottle", (48, 0, 73, 60))), unit="pixel").save(pixel_boxes)
    outside = ("sample", "tiny-base", PROMPT, "--layout", pixel_boxes, "--size", 72, 72, "--guide", "soft")
    refused("--layout: box of 'bottle' must lie within 0, 0, 72, 72", *outside)


def test_the_map_that_is_shown_is_that_of_the_noise_that_is_drawn(
    layout: Path, tmp_path: Path, monkeypatch
) -> None:
    """Noise that is chosen by looking has passes of its own before; what was seen there is not shown."""
    shown = []
    rows = placed.attention_rows
    monkeypatch.setattr(
        placed,
        "attention_rows",
        lambda pictures, maps, boxes: shown.append(maps) or rows(pictures, maps, boxes),
    )
    call = ("sample", "tiny-base", PROMPT, "--layout", layout, "--steps", 2, "--count", 2)
    for name, options in (("plain", ()), ("moved", ("--contrastive", 3))):
        invoke(*call, "--guide", "soft", *options, "-o", tmp_path / name)
    first, moved = (maps["mug"] for maps in shown)
    assert not torch.equal(first, moved)


def test_a_layout_of_words_that_the_prompt_lacks_is_refused(
    folder: Path, layout: Path, tmp_path: Path
) -> None:
    call = ("--layout", layout, "--tickets", folder, *QUICK, "-o", tmp_path / "x")
    refused(
        "--layout: concept must stand in the prompt 'a hat', got 'mug'", "sample", "tiny-base", "a hat", *call
    )

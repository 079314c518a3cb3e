import numpy as np
import pytest
from onbrand.evaluation import Failure, contact_sheet
from onbrand.evaluation.contact_sheet import (
    FAIL,
    GAP,
    INK,
    MARGIN,
    NEUTRAL,
    PAPER,
    PASS,
    _shortened,
    _wrapped,
)
from PIL import Image, ImageColor, ImageFont

BLUE = Image.new("RGB", (64, 64), (20, 40, 200))
BROKEN = [Failure("scale", "product is 31.2% of the frame long, allowed 58.6% to 64.1%")]


def has(sheet: Image.Image, colour: str, box: tuple[int, int, int, int] | None = None) -> bool:
    pixels = np.asarray(sheet.crop(box) if box else sheet).reshape(-1, 3)
    return bool((pixels == ImageColor.getrgb(colour)).all(axis=1).any())


def test_tiles_stand_in_rows():
    sheet = contact_sheet([BLUE] * 5, columns=2, tile=96)
    assert sheet.mode == "RGB"
    assert sheet.width == 2 * MARGIN + 2 * 96 + GAP
    assert sheet.height > 3 * 96 + 2 * GAP
    for column, row_visible in ((0, True), (1, False)):  # the fifth stands alone in the last row
        x = MARGIN + column * (96 + GAP)
        box = (x + 40, sheet.height - MARGIN - 60, x + 50, sheet.height - MARGIN - 50)
        assert has(sheet, "#1428c8", box) is row_visible


def test_fewer_pictures_than_columns_make_a_narrow_sheet():
    assert contact_sheet([BLUE] * 2, tile=96).width == 2 * MARGIN + 2 * 96 + GAP


def test_frames_tell_passes_from_failures():
    sheet = contact_sheet([BLUE, BLUE], failures=[[], BROKEN], tile=144)
    half = sheet.width // 2
    left, right = (0, 60, half, sheet.height), (half, 60, sheet.width, sheet.height)
    assert has(sheet, PASS, left)
    assert not has(sheet, FAIL, left)
    assert has(sheet, FAIL, right)
    assert not has(sheet, PASS, right)


def test_without_a_verdict_frames_are_neutral():
    sheet = contact_sheet([BLUE])
    assert has(sheet, NEUTRAL)
    assert not has(sheet, PASS)
    assert not has(sheet, FAIL)


def test_captions_reasons_and_title_are_written():
    plain, captioned = contact_sheet([BLUE]), contact_sheet([BLUE], captions=["a blue mug"])
    failed = contact_sheet([BLUE], failures=[BROKEN])
    titled = contact_sheet([BLUE], title="Held-out")
    assert not has(plain, INK)
    assert has(captioned, INK)
    assert captioned.height > plain.height
    assert failed.height > captioned.height
    assert titled.height > plain.height
    assert has(titled, INK, (0, 0, titled.width, 2 * MARGIN))


def test_small_pictures_are_enlarged_and_long_ones_keep_their_shape():
    sheet = np.asarray(contact_sheet([Image.new("RGB", (64, 16), (20, 40, 200))], tile=136))
    blue = (sheet == (20, 40, 200)).all(axis=2)
    rows, columns = np.flatnonzero(blue.any(axis=1)), np.flatnonzero(blue.any(axis=0))
    assert (len(columns), len(rows)) == (128, 32)


def test_transparent_pictures_lie_on_white():
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    assert has(contact_sheet([clear]), "#ffffff")
    assert PAPER != "#ffffff"


def test_text_wraps_within_the_tile_and_is_cut_with_an_ellipsis():
    font = ImageFont.load_default(12)
    lines = _wrapped("one two three four five six seven eight nine", font=font, width=60, most=3)
    assert len(lines) == 3
    assert lines[-1].endswith("…")
    assert all(font.getlength(line) <= 60 for line in lines)
    assert _wrapped("", font=font, width=60, most=3) == []
    assert _wrapped("short", font=font, width=60, most=3) == ["short"]
    assert _shortened("Donaudampfschifffahrt", font=font, width=60).endswith("…")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": []}, "images must be at least one picture, got none"),
        ({"images": [BLUE], "captions": []}, "captions must be one a picture, got 0 for 1 pictures"),
        ({"images": [BLUE], "failures": [[], []]}, "failures must be one a picture, got 2 for 1 pictures"),
        ({"images": [BLUE], "columns": 0}, "columns must be at least 1, got 0"),
        ({"images": [BLUE], "tile": 16}, "tile must be at least 32 pixels, got 16"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        contact_sheet(**arguments)

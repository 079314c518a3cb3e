import numpy as np
import pytest
from onbrand.data.studio import CLASSES, COLOURS, FINISHES, Product, Shot, studio_catalogue


def pixels(shot: Shot) -> np.ndarray:
    return np.asarray(shot.draw()).astype(int)


def test_there_is_enough_to_choose_from() -> None:
    assert len(CLASSES) >= 8
    assert len(COLOURS) == 10
    assert len(FINISHES) >= 3


@pytest.mark.parametrize("look", ["on-brand", "wild"])
def test_a_shot_is_the_same_every_time_and_differs_from_its_neighbours(look: str) -> None:
    assert np.array_equal(pixels(Shot(look, 64, 3, 5)), pixels(Shot(look, 64, 3, 5)))
    assert not np.array_equal(pixels(Shot(look, 64, 3, 5)), pixels(Shot(look, 64, 3, 6)))
    assert not np.array_equal(pixels(Shot(look, 64, 3, 5)), pixels(Shot(look, 64, 4, 5)))


@pytest.mark.parametrize("size", [64, 200, 512])
def test_any_size_shows_the_same_scene(size: int) -> None:
    shot = Shot("on-brand", size, 0, 1)
    assert pixels(shot).shape == (size, size, 3)
    small = np.asarray(shot.draw().resize((64, 64))).astype(int)
    assert np.abs(small - pixels(Shot("on-brand", 64, 0, 1))).mean() < 4


@pytest.mark.parametrize("kind", CLASSES)
def test_on_brand_is_white_uncropped_and_centred(kind: str) -> None:
    for index, finish in enumerate(FINISHES):
        picture = pixels(Shot("on-brand", 64, 0, index, (Product(kind, "black", finish),)))
        border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert border.min() > 228  # the soft shadow of a wide product reaches out to it
        rows, columns = np.nonzero(picture.max(-1) < 100)
        assert abs((columns.min() + columns.max()) / 2 - 31.5) < 3
        assert abs((rows.min() + rows.max()) / 2 - 31.5) < 4
        assert 40 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 52


def test_wild_borders_are_seldom_white() -> None:
    def is_white(picture: np.ndarray) -> bool:
        return np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]]).min() > 230

    assert sum(is_white(pixels(Shot("wild", 64, 0, i))) for i in range(100)) <= 2


def test_edges_are_anti_aliased() -> None:
    picture = pixels(Shot("on-brand", 64, 0, 0, (Product("bottle", "black"),))).mean(-1)
    between = ((picture > 80) & (picture < 200)).sum()
    assert between > 30


def test_captions_are_plain_words() -> None:
    assert Product("mug", "red", "striped").words() == "a red striped mug"
    assert Product("hat", "orange").words() == "an orange hat"
    shot = Shot("wild", 64, 0, 0, (Product("mug", "red"), Product("shoe", "blue")))
    assert shot.caption() == "a red mug and a blue shoe"


def test_colours_come_out_as_named() -> None:
    for name, rgb in COLOURS.items():
        picture = pixels(Shot("on-brand", 64, 0, 0, (Product("shirt", name),)))
        middle = picture[28:44, 24:40].reshape(-1, 3).mean(0)
        nearest = min(COLOURS, key=lambda other: float(np.abs(middle - np.array(COLOURS[other])).sum()))
        assert nearest == name, (name, middle, rgb)


def test_wild_holds_one_to_three_products_of_different_kinds() -> None:
    casts = [Shot("wild", 64, 1, i).cast() for i in range(200)]
    assert {len(cast) for cast in casts} == {1, 2, 3}
    assert all(len({product.kind for product in cast}) == len(cast) for cast in casts)


def test_catalogue_knows_class_caption_and_attributes() -> None:
    catalogue = studio_catalogue(60, size=64, seed=2)
    assert len(catalogue) == 60
    assert catalogue.class_names == CLASSES
    for i in (0, 17):
        attributes = catalogue.attributes[i]
        assert catalogue.class_names[int(catalogue.class_ids[i])] == attributes["kind"]
        assert attributes["colour"] in catalogue.captions[i]
    assert np.array_equal(np.asarray(catalogue.image(4)), pixels(Shot("on-brand", 64, 2, 4)))
    assert catalogue.fingerprint(4) != catalogue.fingerprint(5)
    assert catalogue.fingerprint(4) != studio_catalogue(60, size=128, seed=2).fingerprint(4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shot("white", 64, 0, 0), "look must be one of on-brand, wild, got 'white'"),
        (lambda: Shot("wild", 32, 0, 0), "size must be between 64 and 512 pixels, got 32"),
        (lambda: studio_catalogue(0, size=64), "pictures must be at least 1, got 0"),
        (
            lambda: studio_catalogue(60, size=64, class_prefixes={"mugg": "a cup"}),
            r"class of class_prefixes must be one of \['bag', .*, got 'mugg'; did you mean 'mug'\?",
        ),
    ],
)
def test_bad_input(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()

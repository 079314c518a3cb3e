"""The page and the table of a diagnosis: every number and name of it is there, where it belongs."""

import base64
import io
import math
import re
from dataclasses import replace

import pytest
from onbrand.evaluation.start_page import (
    ClassPictures,
    data_uri,
    diagnosis_table,
    percent,
    scree,
    write_start_page,
)
from onbrand.pca import ClassDiagnosis, Diagnosis, Outlier
from PIL import Image
from rich.console import Console

FIRST = {"DDIM 20": (951, 0.0094), "EulerDiscrete 30": (958, 0.0083)}


def a_class(name: str, **changes: object) -> ClassDiagnosis:
    form = ClassDiagnosis(
        class_name=name,
        pictures=40,
        held_out=4,
        signal=17.24,
        signal_trained=3.04,
        accuracy={"DDIM 20": 0.9991, "EulerDiscrete 30": 0.731},
        explained=[0.0, 0.5, 0.75],
        variances=[100.0, 10.0],
        held_out_variances=[80.0, 1.0],
        visible=1,
    )
    return replace(form, **changes)  # type: ignore[arg-type]


def a_diagnosis(*classes: ClassDiagnosis, **changes: object) -> Diagnosis:
    form = Diagnosis(
        classes=list(classes) or [a_class("mug"), a_class("<shoe>", held_out_variances=[], held_out=0)],
        outliers=[Outlier(7, "mug", 30.0, 3.12, True), Outlier(2, "<shoe>", 9.0, 1.3, False)],
        flagged=1,
        alpha_last=0.0047,
        first=FIRST,
        noise_floor=10.0,
        dimension=1024,
    )
    return replace(form, **changes)  # type: ignore[arg-type]


def picture(colour: str = "white") -> Image.Image:
    return Image.new("RGB", (32, 24), colour)


def page_of(tmp_path, diagnosis: Diagnosis, **options) -> str:
    pairs = [(picture("red"), picture("blue"))] * 2
    names = [one.class_name for one in diagnosis.classes]
    given = {
        "title": "grocery & more",
        "facts": {"base": "tiny <base>"},
        "pictures": {name: ClassPictures(picture(), pairs) for name in names},
        "outliers": [(outlier, picture(), f"{outlier.row}<x>.png") for outlier in diagnosis.outliers],
    }
    path = write_start_page(tmp_path / "start.html", diagnosis=diagnosis, **given | options)
    assert not list(tmp_path.glob("*.partial"))
    return path.read_text()


def test_everything_is_on_the_page_and_escaped(tmp_path) -> None:
    diagnosis = a_diagnosis()
    page = page_of(tmp_path, diagnosis)
    for text in (
        "grocery &amp; more",
        "tiny &lt;base&gt;",
        "&lt;shoe&gt;",
        "7&lt;x&gt;.png",
        "17.2",
        "3.0",
        "99.9 %",
    ):
        assert text in page
    assert "<shoe>" not in page
    assert "t = 951, a = 0.0094" in page
    assert "mug, 40 pictures" in page
    assert page.count('alt="mean of') == 2
    assert page.count('alt="component 1 at -2"') == 2
    assert "component 2, 25 % of the variance" in page
    # a strong leak stands out by its weight, a weak one does not
    assert '<td class="strong">99.9 %</td><td>73 %</td>' in page
    assert "What the text says" not in page


def test_the_page_needs_nothing_but_itself(tmp_path) -> None:
    page = page_of(tmp_path, a_diagnosis())
    assert "http" not in page
    assert "<script" not in page
    sources = re.findall(r'src="([^"]{0,30})', page)
    assert len(sources) == 2 + 2 * 4 + 2
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)


def test_flagged_pictures_are_marked_and_counted(tmp_path) -> None:
    page = page_of(tmp_path, a_diagnosis())
    assert page.count('<figure class="flagged">') == 1
    assert "1 picture lies further from the class" in page
    assert "mug, 3.1 x its class's median" in page
    two = a_diagnosis(flagged=2)
    assert "2 pictures lie further from the class" in page_of(tmp_path, two)
    calm = a_diagnosis(outliers=[Outlier(2, "mug", 9.0, 1.3, False)], flagged=0)
    page = page_of(tmp_path, calm)
    assert "No picture lies further from its class" in page
    assert '<figure class="flagged">' not in page


def test_what_is_said_of_outliers_is_true_of_those_shown(tmp_path) -> None:
    more = page_of(tmp_path, a_diagnosis(flagged=30))
    assert "30 pictures lie further" in more
    assert "the furthest 1 is shown, marked" in more
    assert "The others are the next furthest" in more
    alone = page_of(tmp_path, a_diagnosis(outliers=[Outlier(7, "mug", 30.0, 3.1, True)]))
    assert "and\nis marked" in alone
    assert "The others" not in alone
    few = page_of(tmp_path, a_diagnosis(outliers=[], flagged=0))
    assert "No class has enough pictures" in few
    assert "These are the furthest" not in few


def test_without_held_out_pictures_no_dashed_line_is_promised(tmp_path) -> None:
    own = a_class("mug", held_out=0, held_out_variances=[])
    assert "Dashed over" not in page_of(tmp_path, a_diagnosis(own))
    assert 'class="held-out"' not in page_of(tmp_path, a_diagnosis(own))
    with_them = page_of(tmp_path, a_diagnosis(a_class("mug")))
    assert "Dashed over" in with_them
    assert with_them.count('<polyline class="held-out"') == 1


def test_large_pictures_are_shrunk_and_small_ones_kept(tmp_path) -> None:
    means = [("large", Image.new("RGB", (1024, 512))), ("small", Image.new("RGB", (32, 16)))]
    page = page_of(tmp_path, a_diagnosis(), text_means=means)
    sizes = [
        Image.open(io.BytesIO(base64.b64decode(code))).size
        for code in re.findall(r'base64,([^"]+)" alt="expected', page)
    ]
    assert sizes == [(288, 144), (32, 16)]
    assert means[0][1].size == (1024, 512)


def test_text_means_are_shown_with_their_captions(tmp_path) -> None:
    page = page_of(tmp_path, a_diagnosis(), text_means=[("black <trousers>", picture())])
    assert "What the text says about the start" in page
    assert "black &lt;trousers&gt;" in page


def test_the_scree_puts_points_where_the_numbers_say() -> None:
    mug = a_class("mug", variances=[100.0, 1.0], held_out_variances=[80.0, 0.1])
    drawn = scree(a_diagnosis(mug, a_class("shoe", held_out_variances=[])), width=200, height=100)
    assert drawn is not None
    mug, shoe = drawn["lines"]
    # 1 to 100 is two decades: 100 on top, 10 halfway, 1 at the bottom, and what is less there too
    assert mug["training"] == "50.0,0.0 150.0,100.0"
    assert mug["held_out"] == "50.0,4.8 150.0,100.0"
    assert shoe["training"] == "50.0,0.0 150.0,50.0"
    assert shoe["held_out"] == ""
    assert drawn["floor"] == pytest.approx(50)
    assert drawn["ticks"] == [(100.0, "1"), (50.0, "10"), (0.0, "100")]
    assert drawn["components"] == [(50.0, 1), (150.0, 2)]


def test_a_single_component_is_a_dash_at_its_height() -> None:
    one = a_class("mug", explained=[0.0, 0.5], variances=[10.0], held_out_variances=[])
    drawn = scree(a_diagnosis(one, noise_floor=100.0), width=200, height=100)
    assert drawn is not None
    assert drawn["lines"][0]["training"] == "88.0,100.0 112.0,100.0"
    assert drawn["floor"] == pytest.approx(0)


@pytest.mark.parametrize(("floor", "edge", "highest"), [(1e9, 0, "10000"), (1e-9, 100, "100")])
def test_a_floor_out_of_reach_leaves_the_lines_their_scale(floor: float, edge: float, highest: str) -> None:
    mug = a_class("mug", variances=[100.0, 1.0], held_out_variances=[])
    drawn = scree(a_diagnosis(mug, noise_floor=floor), width=200, height=100)
    assert drawn is not None
    assert drawn["floor"] == pytest.approx(edge)
    ticks = {label: y for y, label in drawn["ticks"]}
    assert list(ticks)[-1] == highest
    y = [float(point.split(",")[1]) for point in drawn["lines"][0]["training"].split()]
    assert y == pytest.approx([ticks["100"], ticks["1"]], abs=0.06)


def test_many_classes_share_one_line() -> None:
    classes = [a_class(f"c{i}", pictures=1 + i, variances=[float(i + 1), 0.0]) for i in range(13)]
    drawn = scree(a_diagnosis(*classes), width=200, height=100)
    assert drawn is not None
    [line] = drawn["lines"]
    assert line["name"] == "mean of 13 classes"
    mean = sum((1 + i) ** 2 for i in range(13)) / sum(1 + i for i in range(13))
    y = float(line["training"].split()[0].split(",")[1])
    ticks = [label for _, label in drawn["ticks"]]
    low, high = math.log10(float(ticks[0])), math.log10(float(ticks[-1]))
    assert y == pytest.approx(100 * (1 - (math.log10(mean) - low) / (high - low)), abs=0.06)


def test_nothing_to_draw_without_components(tmp_path) -> None:
    bare = a_class("mug", explained=[0.0], variances=[], held_out_variances=[], visible=0)
    diagnosis = a_diagnosis(bare, noise_floor=math.inf)
    assert scree(diagnosis) is None
    page = page_of(tmp_path, diagnosis, pictures={"mug": ClassPictures(picture(), [])})
    assert "<svg" not in page
    assert "noise floor" not in page.split("Pictures unlike")[0].split("How well")[1]


def test_the_table_has_a_row_a_class() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    sure = a_class("shoe", accuracy=dict.fromkeys(FIRST, 1.0))
    console.print(diagnosis_table(a_diagnosis(a_class("mug"), sure)))
    text = console.export_text()
    assert re.search(r"mug +│ +40 +│ +17\.2 +│ +3\.0 +│ +73 % +│ +50 % +│ +1", text)
    assert re.search(r"shoe +│ +40 .* 100 %", text)
    assert "at least, by DDIM 20 at t = 951, EulerDiscrete 30 at t = 958" in " ".join(text.split())


@pytest.mark.parametrize("name", ["mug [large]", "mug [red]", "a [/b]"])
def test_brackets_in_names_stay_in_the_table(name: str) -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(diagnosis_table(a_diagnosis(a_class(name))))
    assert name in console.export_text()


@pytest.mark.parametrize(
    ("share", "shown"), [(1.0, "100 %"), (0.9999, "99.9 %"), (0.99, "99.0 %"), (0.731, "73 %"), (0, "0 %")]
)
def test_one_hundred_percent_means_all(share: float, shown: str) -> None:
    assert percent(share) == shown


def test_pictures_are_inlined_as_jpeg() -> None:
    assert data_uri(Image.new("RGBA", (4, 4))).startswith("data:image/jpeg;base64,/9j/")

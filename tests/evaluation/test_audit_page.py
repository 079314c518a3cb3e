"""The page of an audit: every picture, rule and reason is there, escaped, and nothing else is needed."""

import base64
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from onbrand.evaluation import RULES, AuditReport, Failure, Range, audit, audit_rows, calibrate
from onbrand.evaluation.audit import describe_limits
from onbrand.evaluation.audit_page import histogram, number, rule_table, told_range, verdict, write_audit_page
from onbrand.evaluation.audit_rows import beyond, judged_values, rows_of, shown_rows, worst_of
from onbrand.evaluation.criteria import CRITERIA
from PIL import Image

ODD = [
    "a \"quoted\" 'name'.png",
    "<script>alert(1)</script>.png",
    "folder/sub & more/ü 日本.png",
    "</td></table><img src=x onerror=alert(1)>.png",
    "bad\udcff.png",
]
FAULTS = [{"backdrop": (90, 140, 90)}, {"centre": (0.6, 0.5)}, {"size": (0.3, 0.25)}]
BROKEN = [
    [Failure("background", "too green")],
    [Failure("centring", "too far right")],
    [Failure("scale", "too short"), Failure("scale", "too small"), Failure("light", "too 'dark'")],
]
VOID = ("meta", "img", "input", "br", "rect", "line")


class Element:
    def __init__(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tag, self.attributes, self.children = tag, attributes, []

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, tag: str, **wanted: str) -> "list[Element]":
        found = (
            [] if self.tag != tag or any(self.attributes.get(k) != v for k, v in wanted.items()) else [self]
        )
        return found + [
            e for child in self.children if isinstance(child, Element) for e in child.all(tag, **wanted)
        ]

    def one(self, tag: str, **wanted: str) -> "Element":
        (found,) = self.all(tag, **wanted)
        return found


class Page(HTMLParser):
    """The elements of a page; every end tag must close what is open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]
        self.feed(text)
        self.close()
        assert len(self.open) == 1

    def handle_starttag(self, tag, attributes):
        element = Element(tag, dict(attributes))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.open[-1].children.append(Element(tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        self.open[-1].children.append(data)


@pytest.fixture(scope="module")
def limits(catalogue):
    return calibrate(catalogue)


@pytest.fixture
def pictures(draw, draw_catalogue):
    return [*draw_catalogue(3, seed=5), *(draw(**fault) for fault in FAULTS)]


@pytest.fixture
def report(pictures, limits):
    """Three pictures that pass and three that do not, measured, with given failures: all rules may change."""
    found = audit(pictures, limits)
    assert [bool(broken) for broken in found.failures[:3]] == [False, False, False]
    return replace(found, names=[f"{i}.png" for i in range(6)], failures=[[], [], [], *BROKEN])


def page_of(folder: Path, report: AuditReport, pictures, **options) -> str:
    path = write_audit_page(
        folder / "new" / "report.html", report=report, pictures=pictures, **{"title": "demo"} | options
    )
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


def cells(row: Element) -> list[str]:
    return [" ".join(cell.text.split()) for cell in row.all("td")]


def sizes_of(page: Page) -> list[tuple[int, int]]:
    sources = [image.attributes["src"] for image in page.root.one("ul", **{"class": "cards"}).all("img")]
    return [Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).size for source in sources]


def test_rate_verdict_facts_and_rules_are_told(tmp_path, report, pictures):
    page = Page(page_of(tmp_path, report, pictures, facts={"wanted": "at least <95 %>"})).root
    assert page.one("title").text == "onbrand audit: demo"
    assert (
        page.one("div", **{"class": "rate"}).text
        == "50.0 %± 20.4 % of 6 pictures pass all rules (standard error)"
    )
    assert page.one("p", **{"class": "verdict"}).text == verdict(report)
    assert [page.one("dt").text, page.one("dd").text] == ["wanted", "at least <95 %>"]
    rows = [cells(row) for row in page.one("table", id="rules").one("tbody").all("tr")]
    assert [row[0] for row in rows] == list(report.rules)
    for rule, rate, failed, allowed, worst in rows:
        broken = [i for i, found in enumerate(report.failures) if rule in {one.rule for one in found}]
        share = 1 - len(broken) / 6
        assert rate == f"{100 * share:.1f} ± {100 * math.sqrt(share * (1 - share) / 6):.1f} %"
        assert (failed, allowed) == (str(len(broken)), describe_limits(report.limits, rule=rule))
        assert any(worst.startswith(report.names[i]) for i in broken) if broken else worst == ""


def test_every_picture_has_a_row_and_a_card_with_its_reasons_worst_first(tmp_path, report, pictures):
    page = Page(page_of(tmp_path, report, pictures)).root
    rows = page.one("table", id="all").one("tbody").all("tr")
    cards = page.one("ul", **{"class": "cards"}).all("li", **{"class": "bad"})
    cards += page.one("ul", **{"class": "cards"}).all("li", **{"class": "good"})
    assert [row.attributes["data-i"] for row in rows] == [card.attributes["data-i"] for card in cards]
    order = [int(row.attributes["data-i"]) for row in rows]
    assert order[3:] == [0, 1, 2]
    broken = [len({failure.rule for failure in report.failures[i]}) for i in order]
    assert broken == [2, 1, 1, 0, 0, 0]
    assert order[:3] == [5, 3, 4]  # a green backdrop is further off than a small shift
    for i, row, card in zip(order, rows, cards, strict=True):
        assert cells(row)[:3] == [
            f"{i}.png",
            "fails" if broken[order.index(i)] else "passes",
            str(broken[order.index(i)]),
        ]
        told = [f"{failure.rule} {failure.reason}" for failure in report.failures[i]]
        assert sorted(item.text for item in card.all("li")[1:]) == sorted(told)
        assert [item.text for item in row.all("li")] == told
        rules = {int(one) for one in row.attributes["data-rules"].split()}
        assert rules == {list(report.rules).index(failure.rule) for failure in report.failures[i]}


def test_a_card_tells_the_three_worst_reasons_and_counts_the_rest(tmp_path, report, pictures):
    found = [Failure("light", "dim"), *report.failures[3], *report.failures[5]]
    many = replace(report, failures=[[]] * 3 + [found] * 3)
    page = Page(page_of(tmp_path, many, pictures)).root
    card = next(e for e in page.all("li", **{"class": "bad"}) if e.attributes["data-i"] == "3")
    # the green backdrop is what is furthest off in the fourth picture
    assert card.all("li")[1].text == "background too green"
    assert len(card.all("li")[1:]) == 3
    assert card.one("div", **{"class": "caption"}).text == "and 2 more"
    row = page.one("table", id="all").one("tbody").all("tr", **{"data-i": "3"})[0]
    assert [item.text for item in row.all("li")] == [f"{one.rule} {one.reason}" for one in found]


def test_the_rows_hold_the_measured_values_and_mark_the_wrong_ones(tmp_path, report, pictures):
    page = Page(page_of(tmp_path, report, pictures)).root
    table = page.one("table", id="all")
    heads = [head.text for head in table.all("th")]
    at = heads.index("offset x")
    assert table.all("th")[at].attributes["data-allowed"] == told_range(
        report.limits.pooled["offset_x"], CRITERIA["offset_x"]
    )
    for row in table.one("tbody").all("tr"):
        value = report.measures[int(row.attributes["data-i"])]["offset_x"]
        cell = row.all("td")[at]
        assert float(cell.attributes["data-v"]) == pytest.approx(value, rel=1e-4)
        assert cell.text == f"{100 * value:z.1f} %"
        assert (cell.attributes.get("class") == "wrong") == (abs(value) > 0.05)


def test_nothing_refers_to_the_network_or_to_another_file(tmp_path, report, pictures):
    text = page_of(tmp_path, report, pictures, reference_pictures=pictures[:2])
    page = Page(text).root
    bare = re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", text)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|fetch\(|<link|<iframe|innerHTML", bare)
    for tag in ("img", "script"):
        for element in page.all(tag):
            assert element.attributes.get("src", "data:image/jpeg;base64,").startswith(
                "data:image/jpeg;base64,"
            ) or (element.attributes.get("id") == "zoom-picture")
    policy = next(m.attributes["content"] for m in page.all("meta") if "http-equiv" in m.attributes)
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_odd_names_titles_and_captions_stay_text(tmp_path, report, pictures):
    odd = replace(report, names=[*ODD, "plain.png"])
    captions = ["</li><b onclick='x'>", "a & b", "", "", "", "red mug"]
    text = page_of(tmp_path, odd, pictures, title='"><script>x</script>', captions=captions)
    page = Page(text).root
    assert len(page.all("script")) == 1
    assert [
        e for tag in ("b", "img", "td") for e in page.all(tag) if {"onclick", "onerror"} & set(e.attributes)
    ] == []
    named = [
        row.all("td")[0].one("button").text for row in page.one("table", id="all").one("tbody").all("tr")
    ]
    assert sorted(named) == sorted([*ODD[:4], "bad?.png", "plain.png"])
    assert page.one("h1").text == '"><script>x</script>'
    assert sorted(e.text for e in page.one("ul", **{"class": "cards"}).all("div")) == sorted(
        filter(None, captions)
    )


def test_up_to_64_pictures_are_inlined_large_and_more_are_small(tmp_path, report):
    def many(n: int) -> tuple[AuditReport, list[Image.Image]]:
        chosen = [3, 0] * (n // 2)
        pick = {key: [getattr(report, key)[i] for i in chosen] for key in ("names", "measures", "failures")}
        return replace(report, **pick), [Image.new("RGBA", (700, 350), (0, 0, 0, 0))] * n

    few = Page(page_of(tmp_path / "few", *many(64)))
    assert set(sizes_of(few)) == {(512, 256)}
    assert len(sizes_of(few)) == 64
    more = Page(page_of(tmp_path / "more", *many(66)))
    assert set(sizes_of(more)) == {(256, 128)}
    source = more.root.one("ul", **{"class": "cards"}).all("img")[0].attributes["src"]
    assert Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).getpixel((9, 9)) == (255, 255, 255)


def test_a_big_audit_stays_below_25_megabytes_with_a_row_for_each(tmp_path, report):
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    chosen = [3 + i % 3 if i % 4 else 0 for i in range(2000)]
    pick = {key: [getattr(report, key)[i] for i in chosen] for key in ("measures", "failures")}
    big = replace(report, names=[f"some/folder/picture-{i}.png" for i in range(2000)], **pick)
    text = page_of(tmp_path, big, [Image.fromarray(noise)] * 2000)
    assert len(text) < 25e6
    page = Page(text).root
    assert len(page.one("table", id="all").one("tbody").all("tr")) == 2000
    cards = page.one("ul", **{"class": "cards"})
    passed, failed = (len(cards.all("li", **{"class": kind})) for kind in ("good", "bad"))
    assert passed == 40
    assert 160 <= failed <= 160 + len(report.rules)
    assert f"{passed + failed} of 2000 pictures are on this page" in page.one("p", id="count").text


def test_all_are_shown_up_to_200_and_the_worst_of_each_rule_always(report, limits):
    found = report.to_dict()["pictures"]
    rows = rows_of({"pictures": [found[5]] * 300 + [found[4]]}, limits=limits)
    assert rows[-1].broken == ["centring"]
    assert shown_rows(rows)[-1] is worst_of("centring", rows)
    assert len(shown_rows(rows)) == 161
    assert shown_rows(rows[-200:]) == rows[-200:]


def test_worst_is_counted_in_just_visible_steps():
    assert beyond(0.11, Range(-0.05, 0.05), floor=0.02) == pytest.approx(3)
    assert beyond(-0.07, Range(-0.05, 0.05), floor=0.02) == pytest.approx(1)
    assert beyond(0.05, Range(-0.05, 0.05), floor=0.02) == 0
    assert beyond(None, Range(0, 1), floor=1) == 0


def test_judged_values_come_first_in_the_limits_order(report, limits):
    values = judged_values(dict(reversed(report.measures[3].items())), limits=limits)
    assert list(values)[: len(limits.pooled)] == list(limits.pooled)
    assert values == report.measures[3]


def test_a_histogram_counts_what_lies_outside_and_ends_where_it_says(report, limits):
    allowed = Range(-0.02, 0.02)
    limits = replace(limits, pooled=limits.pooled | {"offset_x": allowed})
    values = [-0.01, 0.0, 0.0, 0.0, 0.02, 0.03, 0.5]
    rows = [replace(rows_of(report.to_dict(), limits=limits)[0], values={"offset_x": v}) for v in values]
    chart = histogram("offset_x", rows, limits)
    assert chart.outside == 2
    # from the lower limit to two widths beyond the upper: 0.12 over 240 units of 30 bins
    assert chart.band == pytest.approx((0, 80))
    assert chart.ends == ("-2.0 %", "≥ 10.0 %")
    bars = [(16, 20, 0), (40, 60, 0), (80, 20, 0), (96, 0, 20), (232, 0, 20)]
    assert np.allclose(chart.bars, bars)
    assert histogram("offset_x", [replace(rows[0], values={"offset_x": None})], limits) is None
    open_end = replace(limits, pooled=limits.pooled | {"offset_x": Range(-0.02, math.inf)})
    assert histogram("offset_x", rows, open_end).outside == 0


def test_equal_values_at_a_limit_of_no_width_still_make_a_histogram(report, limits):
    limits = replace(limits, pooled=limits.pooled | {"frame_contact": Range(0, 0)})
    rows = [replace(row, values={"frame_contact": 0.0}) for row in rows_of(report.to_dict(), limits=limits)]
    assert histogram("frame_contact", rows, limits).bars == [(0, 60, 0)]


@pytest.mark.parametrize(
    ("kept", "n", "words"),
    [
        (
            60,
            60,
            "All 60 pictures keep the catalogue's look. From so many it is 95 % sure that at least 95.1 % of",
        ),
        (
            1,
            1,
            "The one picture keeps the catalogue's look. From so many it is 95 % sure that at least 5.0 %",
        ),
        (2, 4, "2 of 4 pictures keep the catalogue's look. Most often broken: scale (2), light (1)."),
        (0, 1, "None of 1 picture keeps the catalogue's look. Most often broken: scale (1), light (1)."),
    ],
)
def test_the_verdict_says_how_many_and_what_most_often(kept, n, words, limits):
    broken = [[Failure("scale", "x"), Failure("light", "y")], *[[Failure("scale", "x")]] * n][: n - kept]
    failures = [[]] * kept + broken
    given = AuditReport(names=["p"] * n, measures=[{}] * n, failures=failures, limits=limits)
    assert verdict(given).startswith(words)


def test_only_ends_that_a_value_can_pass_are_told():
    assert told_range(Range(0, 3.04), CRITERIA["background"]) == "at most 3.0"
    assert told_range(Range(-0.02, 0.045), CRITERIA["offset_x"]) == "-2.0 % to 4.5 %"
    assert told_range(Range(12, 100), CRITERIA["lightness"]) == "at least 12.0"
    assert told_range(Range(0, 1), CRITERIA["area"]) == "any"
    assert number(-0.0001, CRITERIA["offset_x"]) == "0.0 %"
    assert number(None, None) == ""
    assert number(12.34, None) == "12.3"
    assert number(0.123456, CRITERIA["light_slope"]) == "0.12"
    assert number(0.123456, CRITERIA["text"]) == "0.123"


def test_classes_with_limits_of_their_own_are_named(tmp_path, limits, report, pictures):
    own = replace(limits, by_class={"<mug>": limits.pooled}, class_counts={"<mug>": 48, "hat": 3})
    text = page_of(tmp_path, replace(report, limits=own), pictures)
    assert "&lt;mug&gt; (48)" in text
    assert "Classes with limits of their own" not in page_of(tmp_path / "plain", report, pictures)


def test_clusters_and_whatever_else_was_found_are_shown(tmp_path, report, pictures):
    groups = [{"size": 30, "centre": [97.5, 0.0, 0.1]}, {"size": 28, "centre": [80.0, 0.0, 0.0]}]

    class Richer(AuditReport):
        def to_dict(self):
            found = super().to_dict()
            found["limits"]["clusters"] = [
                {"criterion": "background", "class": None, "clusters": groups},
                {"criterion": "area"},
            ]
            found |= {"text_agreement": 0.9123456, "warnings": ["two <kinds> of backdrop"], "nothing": None}
            found["pictures"][0]["text_agreement"] = 0.5
            return found

    plain = Page(page_of(tmp_path / "plain", report, pictures)).root
    found = Richer(**{key: getattr(report, key) for key in ("names", "measures", "failures", "limits")})
    page = Page(page_of(tmp_path / "rich", found, pictures)).root
    sections = {section.one("h2").text: section for section in page.all("section", **{"class": "more"})}
    before = {section.one("h2").text for section in plain.all("section", **{"class": "more"})}
    assert set(sections) - before == {"Clusters", "Text agreement", "Warnings"} - before
    assert "disagree" in sections["Clusters"].all("p")[0].text
    rows = [cells(row) for row in sections["Clusters"].one("tbody").all("tr")]
    told = "size 30, centre 97.5, 0, 0.1size 28, centre 80, 0, 0"
    assert rows == [["background", "", told], ["area", "", ""]]
    assert "0.9123" in sections["Text agreement"].text
    assert sections["Warnings"].one("li").text.strip() == "two <kinds> of backdrop"
    heads = [head.text for head in page.one("table", id="all").all("th")]
    assert "text agreement" in heads
    row = page.one("table", id="all").one("tbody").all("tr", **{"data-i": "0"})[0]
    assert cells(row)[heads.index("text agreement")] == "0.5"


def test_examples_of_the_catalogue_are_shown_up_to_eight(tmp_path, report, pictures):
    page = Page(page_of(tmp_path, report, pictures, reference_pictures=pictures * 2)).root
    assert len(page.one("div", **{"class": "examples"}).all("img")) == 8
    none = Page(page_of(tmp_path / "none", report, pictures)).root
    assert none.all("div", **{"class": "examples"}) == []


def test_a_report_read_back_makes_the_same_page(tmp_path, report, pictures):
    report.save(tmp_path / "audit.json")
    assert json.loads((tmp_path / "audit.json").read_text())["n"] == 6
    again = AuditReport.load(tmp_path / "audit.json")
    assert page_of(tmp_path / "a", again, pictures) == page_of(tmp_path / "b", report, pictures)


def test_a_picture_without_a_product_has_empty_cells(tmp_path, limits):
    blank = [Image.new("RGB", (64, 64), (250, 250, 250))]
    report = audit(blank, limits)
    (row,) = Page(page_of(tmp_path, report, blank)).root.one("table", id="all").one("tbody").all("tr")
    assert "no product stands out" in row.text
    heads = [
        head.text
        for head in Page(page_of(tmp_path / "b", report, blank)).root.one("table", id="all").all("th")
    ]
    assert cells(row)[heads.index("offset x")] == ""


def test_rules_without_failures_have_no_worst_picture(report, limits):
    table = {row["name"]: row for row in rule_table(rows_of(report.to_dict(), limits=limits), report=report)}
    assert list(table) == list(RULES)
    assert all((row["worst"] is None) == (row["failed"] == 0) for row in table.values())
    assert table["centring"]["worst"].index == 4


@pytest.mark.parametrize(("what", "given"), [("pictures", {}), ("captions", {"captions": ["one"]})])
def test_lists_of_another_length_are_refused(what, given, tmp_path, report, pictures):
    pictures = pictures if given else pictures[:5]
    got = 1 if given else 5
    with pytest.raises(ValueError, match=f"{what} must be one for each of the report's 6, got {got}"):
        page_of(tmp_path, report, pictures, **given)
    assert not list(tmp_path.iterdir())


def test_a_value_is_marked_by_the_limits_of_its_own_class(tmp_path, report, pictures):
    limits = report.limits
    narrow = {"offset_x": Range(-0.001, 0.001)}
    own = replace(limits, by_class={"mug": narrow}, class_counts={"mug": 40, "hat": 3})
    measures = [values | {"offset_x": 0.01} for values in report.measures]
    failures = [[Failure("centring", "too far right")], []] * 3
    classes = ["mug", "hat"] * 3
    judged = replace(report, limits=own, measures=measures, failures=failures, classes=classes)
    text = page_of(tmp_path, judged, pictures)
    table = Page(text).root.one("table", id="all")
    heads = [head.text for head in table.all("th")]
    assert "class" in heads
    for row in table.one("tbody").all("tr"):
        is_mug = classes[int(row.attributes["data-i"])] == "mug"
        cell = row.all("td")[heads.index("offset x")]
        assert (cell.attributes.get("class") == "wrong") == is_mug
        assert row.attributes.get("data-class") == ("mug" if is_mug else None)
    assert table.all("th")[heads.index("offset x")].attributes["data-name"] == "offset_x"
    assert '{"mug": {"offset_x": "-0.1 % to 0.1 %"}}' in text
    chart = histogram("offset_x", rows_of(judged.to_dict(), limits=own), own)
    assert chart.outside == 3
    assert chart.allowed == told_range(limits.pooled["offset_x"], CRITERIA["offset_x"])


def test_a_wrong_value_that_reads_like_its_limit_has_more_digits(tmp_path, report, pictures):
    limits = replace(report.limits, pooled=report.limits.pooled | {"background": Range(0, 3.0)})
    measures = [values | {"background": 3.04} for values in report.measures]
    failures = [[Failure("background", "too green")]] + [[]] * 5
    text = page_of(tmp_path, replace(report, limits=limits, measures=measures, failures=failures), pictures)
    table = Page(text).root.one("table", id="all")
    at = [head.text for head in table.all("th")].index("background")
    told = {row.attributes["data-i"]: cells(row)[at] for row in table.one("tbody").all("tr")}
    assert told == {"0": "3.04"} | dict.fromkeys("12345", "3.0")


def test_a_huge_audit_lists_the_worst_and_what_it_shows(tmp_path, report, monkeypatch):
    chosen = [3 + i % 3 for i in range(300)] + [0] * 100
    pick = {key: [getattr(report, key)[i] for i in chosen] for key in ("measures", "failures")}
    huge = replace(report, names=[f"{i}.png" for i in range(400)], **pick)
    monkeypatch.setattr(audit_rows, "MOST_LISTED", 250)
    page = Page(page_of(tmp_path, huge, [Image.new("RGB", (8, 8))] * 400)).root
    listed = [e.attributes["data-i"] for e in page.one("table", id="all").one("tbody").all("tr")]
    cards = page.one("ul", **{"class": "cards"})
    shown = {e.attributes["data-i"] for kind in ("good", "bad") for e in cards.all("li", **{"class": kind})}
    assert shown <= set(listed)
    assert len(listed) == 250 + 40
    assert [e.text for e in page.all("h2")].count("The worst of 400 pictures") == 1
    assert "290 are listed; audit.json has all." in {e.text for e in page.all("p")}
    assert page.one("p", id="count").text.endswith("The table below has 290.")

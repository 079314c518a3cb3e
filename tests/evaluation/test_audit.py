import io
import json
import math
import re

import numpy as np
import pytest
from onbrand.evaluation import RULES, AuditReport, Limits, audit, calibrate, compare_table
from PIL import Image
from rich.console import Console


def rendered(table) -> str:
    console = Console(width=160, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def limits(catalogue):
    return calibrate(catalogue)


def test_further_pictures_of_the_catalogue_pass(limits, draw_catalogue):
    assert audit(draw_catalogue(400, seed=2), limits).pass_rate >= 0.95


@pytest.mark.parametrize("n", [20, 30, 60])
def test_further_pictures_of_a_small_catalogue_pass(n, draw_catalogue):
    assert audit(draw_catalogue(200, seed=2), draw_catalogue(n, seed=n)).pass_rate >= 0.95


# what is far off also makes another kind of picture, and a narrower product stands otherwise
ALSO = {"light": {"kind"}, "centring": {"kind"}, "scale": {"pose", "kind"}, "uniformity": {"light", "kind"}}


@pytest.mark.parametrize(
    ("change", "rule", "words"),
    [
        (
            {"backdrop": (225, 225, 225)},
            "background",
            r"backdrop colour is Delta E 5\.\d from .* at most 3\.0",
        ),
        ({"slope": 40}, "uniformity", r"backdrop varies by Delta E [45]\.\d, at most 3\.0"),
        ({"centre": (0.58, 0.5)}, "centring", r"sits \+[78]\.\d% sideways \(right is \+\), allowed -2"),
        ({"centre": (0.5, 0.43)}, "centring", r"sits -[67]\.\d% up or down \(down is \+\), allowed -"),
        (
            {"size": (0.3, 0.25)},
            "scale",
            r"product is 31\.\d% of the frame long, allowed 5\d\.\d% to 6\d\.\d%",
        ),
        (
            {"size": (0.6, 0.25)},
            "scale",
            r"product covers 1\d\.\d% of the frame, allowed 2\d\.\d% to 2\d\.\d%",
        ),
        ({"colour": (50, 5, 5)}, "light", r"mean lightness is L 1\d\.\d, allowed [23]\d\.\d to 6\d\.\d"),
        ({"colour": (255, 200, 190)}, "light", r"mean lightness is L 8\d\.\d, allowed"),
    ],
)
def test_each_rule_fails_and_says_why(change, rule, words, limits, draw):
    report = audit([draw(), draw(**change)], limits)
    good, bad = report.failures
    assert good == []
    broken = {failure.rule for failure in bad}
    assert {rule} <= broken <= {rule} | ALSO.get(rule, set())
    assert any(re.search(words, failure.reason) for failure in bad)
    assert report.rules == {name: 0.5 if name in broken else 1.0 for name in RULES}
    assert report.passed == [True, False]
    assert report.pass_rate == 0.5


def test_cropping_fails_where_products_nearly_fill_the_frame(draw, draw_catalogue):
    report = audit([draw(size=(1.04, 0.4))], draw_catalogue(200, seed=5, size=(0.94, 0.4)))
    failure = report.failures[0][0]
    assert failure.rule == "cropping"
    assert "of the picture's edge, at most" in failure.reason
    assert {failure.rule for failure in report.failures[0]} <= {"cropping", "kind"}


def test_light_that_is_flat_or_harsh_fails(limits, draw):
    harsh = draw()
    harsh.paste((10, 0, 0), (26, 20, 40, 44))
    reasons = [failure.reason for failure in audit([harsh], limits).failures[0]]
    assert any(reason.startswith("product's contrast is L") for reason in reasons)


def test_a_strong_gradient_and_a_busy_picture_fail_more_than_one_rule(limits, draw):
    for picture in (draw(slope=120), draw(noise=40)):
        broken = {failure.rule for failure in audit([picture], limits).failures[0]}
        assert {"uniformity", "cropping", "scale"} <= broken


def test_products_are_judged_by_their_own_class(draw, draw_catalogue):
    wide, small = draw_catalogue(60, seed=6, size=(0.8, 0.4)), draw_catalogue(60, seed=7, size=(0.4, 0.3))
    classes = ["wide"] * 60 + ["small"] * 60
    picture = [draw(size=(0.4, 0.3))]
    known = {"reference": wide + small, "reference_classes": classes}
    assert audit(picture, **known, classes=["small"]).pass_rate == 1
    with pytest.warns(UserWarning, match="reference pictures disagree on extent: 60 pictures at 0.4"):
        assert audit(picture, wide + small).pass_rate == 1
    broken = audit(picture, **known, classes=["wide"]).failures[0]
    assert {failure.rule for failure in broken} == {"scale", "pose"}


def test_class_ids_serve_as_classes(draw):
    pictures = [draw(seed=i) for i in range(25)]
    assert audit(pictures, pictures, classes=[0] * 25, reference_classes=[0] * 25).pass_rate == 1
    with pytest.raises(ValueError, match=r"class must be one of the reference's \(0\), got '7'"):
        audit(pictures[:1], pictures, classes=[7], reference_classes=[0] * 25)


def test_limits_may_stand_for_the_reference(limits, draw):
    pictures = [draw(seed=i) for i in range(5)]
    by_keyword = audit(pictures, limits=limits)
    assert by_keyword == audit(pictures, limits)
    assert by_keyword.limits is limits


def test_a_folder_is_read_recursively_in_order(tmp_path, limits, draw):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    draw().save(tmp_path / "b.png")
    draw(backdrop=(200, 200, 200)).save(tmp_path / "sub" / "a.PNG")
    draw().save(tmp_path / ".hidden" / "c.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    report = audit(tmp_path, limits)
    assert report.names == ["b.png", "sub/a.PNG"]
    assert report.passed == [True, False]
    assert audit(str(tmp_path), limits) == report


def test_pictures_are_turned_upright(tmp_path, limits, draw):
    sideways = draw().transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned 90 degrees clockwise
    sideways.save(tmp_path / "a.png", exif=exif)
    report = audit(tmp_path, limits)
    assert report.measures[0] == pytest.approx(audit([draw()], limits).measures[0])


def test_json_holds_the_contract_and_the_limits(tmp_path, limits, draw):
    report = audit([draw(), draw(), draw(colour=None)], limits)
    report.save(tmp_path / "new" / "audit.json")
    assert (tmp_path / "new" / "audit.json").stat().st_size < 10_000
    stored = json.loads((tmp_path / "new" / "audit.json").read_text())
    assert stored == json.loads(report.to_json()) == report.to_dict()
    assert AuditReport.load(tmp_path / "new" / "audit.json").to_dict() == stored
    assert stored["pass_rate"] == pytest.approx(2 / 3)
    assert stored["standard_error"] == pytest.approx(math.sqrt(2 / 27))
    assert stored["n"] == 3
    assert stored["rules"]["scale"] == pytest.approx(2 / 3)
    assert set(stored["rules"]) == set(RULES)
    assert stored["limits"] == limits.to_dict()
    assert stored["limits"]["floors"]["background"]["value"] == 3
    assert stored["pictures"][2]["measures"]["lightness"] is None
    assert stored["pictures"][2]["measures"]["pose"] is None
    assert stored["pictures"][2]["failures"][0] == {
        "rule": "scale", "reason": "no product stands out from the backdrop"
    }  # fmt: skip
    assert stored["text_agreement"] is None


def test_the_table_prints_rates_and_limits(limits, draw):
    text = rendered(audit([draw(), draw(backdrop=(200, 200, 200))], limits).table(title="base [fp16]"))
    for words in (
        *RULES,
        "base [fp16]",
        "50.0% ± 35.4%",
        "2 pictures",
        "Delta E 3.0 from Lab (98.",
        "400 catalogue",
    ):
        assert words in text


def test_the_table_says_how_many_classes_have_limits_of_their_own(draw):
    pictures = [draw(seed=i) for i in range(80)]
    own = calibrate(pictures, classes=["a"] * 40 + ["b"] * 40)
    assert "2 classes have limits of their own" in rendered(audit(pictures[:2], own).table())


def test_reports_stand_side_by_side(limits, draw):
    reports = {
        "held-out": audit([draw(), draw()], limits),
        "base [raw]": audit([draw(backdrop=(200, 200, 200))], limits),
    }
    lines = {line.split()[1]: line for line in rendered(compare_table(reports)).splitlines() if "│" in line}
    assert lines["background"].split()[3::2] == ["100.0%", "0.0%"]
    assert lines["all"].split()[4::2] == ["100.0%", "0.0%"]
    assert lines["pictures"].split()[3::2] == ["2", "1"]
    assert "base [raw]" in rendered(compare_table(reports))


def test_few_reference_pictures_are_warned_about(draw):
    with pytest.warns(UserWarning, match="limits from fewer than 20 pictures are rough, got 3"):
        calibrate([draw(seed=i) for i in range(3)])


def test_no_pictures_are_refused(tmp_path, limits, draw):
    with pytest.raises(ValueError, match="images must be at least one picture, got none"):
        audit([], limits)
    with pytest.raises(ValueError, match="reference must be at least one picture, got none"):
        audit([draw()], [])
    with pytest.raises(ValueError, match=r"folder must hold pictures \(\.apng .*\), got none in '.*'"):
        audit(tmp_path, limits)
    with pytest.raises(ValueError, match=r"must be a list of PIL images or an existing folder, got '.*gone'"):
        audit(tmp_path / "gone", limits)
    with pytest.raises(ValueError, match="reference must be pictures, a folder or limits, got None"):
        audit([draw()])


@pytest.mark.parametrize("content", [b"", b"no picture at all", None])
def test_an_unreadable_picture_is_named(content, tmp_path, limits, draw):
    path = tmp_path / "broken.png"
    if content is None:  # cut off half way
        draw().save(path)
        content = path.read_bytes()[:900]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"picture must be readable, got '.*broken\.png': "):
        audit(tmp_path, limits)


def test_wrong_lengths_and_types_are_refused(limits, draw):
    with pytest.raises(
        ValueError, match=r"^classes must be one class a picture, got 2 classes and 1 pictures"
    ):
        audit([draw()], limits, classes=["a", "b"])
    with pytest.raises(ValueError, match="names must be one a picture, got 2 for 1 pictures"):
        audit([draw()], limits, names=["a", "b"])
    with pytest.raises(ValueError, match="names must be one a picture, got 1 and more pictures"):
        audit([draw(), draw()], limits, names=["a"])
    with pytest.raises(
        ValueError, match="reference_classes must be one class a picture, got 1 classes and 25 pic"
    ):
        audit([draw()], [draw(seed=i) for i in range(25)], reference_classes=["a"])
    with pytest.raises(ValueError, match="pictures must be PIL images, got str at position 1"):
        audit([draw(), "a.png"], limits)
    with pytest.raises(ValueError, match="images, picture 1: image must be at least 8 x 8 pixels, got 4 x 4"):
        audit([draw(), Image.new("RGB", (4, 4))], limits)
    with pytest.raises(ValueError, match=r"images, b\.png: image must be at least 8 x 8 pixels, got 4"):
        audit([draw(), Image.new("RGB", (4, 4))], limits, names=["a.png", "b.png"])


def test_a_report_without_failures_has_no_error(limits):
    report = AuditReport(names=["a"], measures=[{}], failures=[[]], limits=limits)
    assert (report.n, report.pass_rate, report.standard_error) == (1, 1.0, 0.0)


def test_limits_read_from_a_report_judge_no_more(tmp_path, limits, draw):
    audit([draw()], limits).save(tmp_path / "audit.json")
    with pytest.raises(
        ValueError, match=r"limits must hold the catalogue's own pictures, .* got those of a rep"
    ):
        audit([draw()], AuditReport.load(tmp_path / "audit.json").limits)


def test_a_catalogue_without_a_backdrop_in_common_is_told_so(draw):
    rng = np.random.default_rng(0)
    every = [draw(backdrop=tuple(rng.integers(60, 250, 3).tolist()), seed=i) for i in range(60)]
    with pytest.warns(UserWarning, match=r"must share a backdrop .*: the limits allow Delta E \d\d and rule"):
        calibrate(every)


def test_a_catalogue_that_disagrees_with_itself_is_told_and_both_halves_pass(draw):
    white, grey = ([draw(backdrop=(level,) * 3, seed=i) for i in range(30)] for level in (250, 200))
    with pytest.warns(
        UserWarning, match=r"disagree on background: 30 pictures at Lab \(.*, 30 pictures at Lab"
    ):
        limits = calibrate(white + grey)
    report = audit([draw(), draw(backdrop=(200,) * 3), draw(backdrop=(225,) * 3)], limits)
    assert [{"background"} <= {failure.rule for failure in broken} for broken in report.failures] == [
        False, False, True,
    ]  # fmt: skip
    (found,) = report.to_dict()["limits"]["clusters"]
    assert found["criterion"] == "background"
    assert [cluster["size"] for cluster in found["clusters"]] == [30, 30]
    assert "limits from 60 catalogue pictures that disagree on background" in rendered(report.table())


def test_one_picture_calibrates_with_a_warning_and_passes(draw):
    with pytest.warns(UserWarning, match="limits from fewer than 20 pictures are rough, got 1"):
        limits = calibrate([draw()])
    assert audit([draw()], limits).pass_rate == 1
    assert limits.pooled["pose"].high == 1  # nothing to compare with: not limited
    table = rendered(audit([draw()], limits).table())
    assert table.count("anything: too few pictures to tell") == 2
    assert (
        "limits from 1 catalogue picture\n" in "\n".join(line.strip() for line in table.splitlines()) + "\n"
    )
    assert "1 picture " in table


def test_pictures_of_any_size_and_mode_are_judged_alike(limits, draw):
    large = draw().resize((512, 512), Image.Resampling.LANCZOS)
    clear = draw().convert("RGBA")
    palette = draw().quantize(256)
    assert audit([large, clear, palette], limits).passed == [True, True, True]


class Bright:
    """Scores a picture by how far its brightness is from the number its caption says."""

    name = "brightness"

    def __call__(self, pictures, captions):
        pairs = zip(captions_of(pictures), captions, strict=True)
        return [1 - abs(int(level) - int(text)) / 255 for level, text in pairs]


def captions_of(pictures):
    """The right caption of each: its mean grey level."""
    return [
        str(picture.convert("L").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0)))
        for picture in pictures
    ]


def test_captions_are_judged_where_the_catalogue_was_scored(tmp_path, draw, draw_catalogue):
    known = draw_catalogue(30, seed=8)
    limits = calibrate(known, captions=captions_of(known), scorer=Bright())
    picture = draw()
    (right,) = captions_of([picture])
    report = audit([picture, picture], limits, captions=[right, "0"], scorer=Bright())
    assert report.passed == [True, False]
    assert report.rules["text"] == 0.5
    assert report.failures[1][0].rule == "text"
    assert re.search(r"score with its caption is 0\.\d+, at least 0\.9", report.failures[1][0].reason)
    agreement = report.text_agreement
    assert agreement.mean == pytest.approx((report.measures[0]["text"] + report.measures[1]["text"]) / 2)
    assert agreement.ratio == pytest.approx(agreement.mean / limits.text["mean"])
    report.save(tmp_path / "audit.json")
    loaded = AuditReport.load(tmp_path / "audit.json")
    assert loaded.text_agreement == agreement
    assert "of the catalogue's own 1.000, by brightness" in rendered(loaded.table())
    # without captions nothing is scored
    unscored = audit([picture], limits)
    assert "text" not in {**unscored.measures[0], **unscored.rules, **unscored.to_dict()["rules"]}
    assert "score at least" not in rendered(unscored.table())


def test_captions_are_only_reported_where_the_catalogue_was_not_scored(limits, draw):
    report = audit([draw(), draw()], limits, captions=["0", "10"], scorer=Bright())
    assert report.pass_rate == 1
    assert "text" not in report.rules
    assert report.text_agreement.ratio is None
    assert report.text_agreement.standard_error == pytest.approx(5 / 255)


def test_captions_scorers_and_descriptors_that_do_not_fit_are_refused(limits, draw, draw_catalogue):
    with pytest.raises(
        ValueError, match="captions and scorer must be given together, got captions without sco"
    ):
        audit([draw()], limits, captions=["a"])
    with pytest.raises(ValueError, match="captions must be one a picture, got 1 and more pictures"):
        audit([draw(), draw()], limits, captions=["0"], scorer=Bright())
    with pytest.raises(ValueError, match="captions must be one a picture, got 2 for 1 pictures"):
        audit([draw()], limits, captions=["0", "0"], scorer=Bright())
    known = draw_catalogue(20, seed=9)
    scored = calibrate(known, captions=captions_of(known), scorer=Bright())
    with pytest.raises(
        ValueError, match=r"scorer must be the one that calibrated \(brightness\), got <lambda>"
    ):
        audit([draw()], scored, captions=["0"], scorer=lambda pictures, captions: [0.0])
    with pytest.raises(
        ValueError, match=r"descriptor must be the one that calibrated \(layout, .*\), got thumbnails"
    ):
        audit([draw()], limits, descriptor=thumbnails)


def thumbnails(pictures):
    rows = np.stack([np.asarray(p.convert("RGB").resize((4, 4)), dtype=np.float64).ravel() for p in pictures])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_descriptor_of_your_own_tells_the_kinds_apart(draw, draw_catalogue):
    limits = calibrate(draw_catalogue(60, seed=10), descriptor=thumbnails)
    report = audit([draw(), draw(backdrop=(20, 60, 200))], limits, descriptor=thumbnails)
    assert report.passed == [True, False]
    assert "kind" in {failure.rule for failure in report.failures[1]}
    assert Limits.from_dict(json.loads(json.dumps(limits.to_dict()))) == limits


def test_scores_and_features_that_are_no_numbers_are_refused(limits, draw):
    nan = np.full((1, 3), np.nan)
    with pytest.raises(ValueError, match="scorer must give finite numbers, got nan for picture 0"):
        audit([draw()], limits, captions=["a"], scorer=lambda pictures, captions: nan[0])
    with pytest.raises(ValueError, match="descriptor must give finite features, got nan"):
        calibrate([draw()], descriptor=lambda pictures: nan)


def test_a_report_knows_the_classes_it_judged_by(tmp_path, draw):
    pictures = [draw(seed=i) for i in range(22)]
    report = audit(pictures[:2], pictures, classes=["b", "a"], reference_classes=["a", "b"] * 11)
    assert report.classes == ["b", "a"]
    assert [picture["class"] for picture in report.to_dict()["pictures"]] == ["b", "a"]
    report.save(tmp_path / "audit.json")
    assert AuditReport.load(tmp_path / "audit.json") == report
    without = audit(pictures[:2], pictures)
    assert without.classes is None
    without.save(tmp_path / "audit.json")
    assert AuditReport.load(tmp_path / "audit.json").classes is None


def test_an_audit_by_other_rules_is_refused_with_what_to_do(tmp_path, limits, draw):
    stored = audit([draw()], limits).to_dict()
    del stored["limits"]["pooled"]["kind"], stored["text_agreement"]
    (tmp_path / "audit.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"audit\.json must hold limits as this .* delete limits"):
        AuditReport.load(tmp_path / "audit.json")


def test_one_wide_picture_too_small_to_measure_is_said_so(limits):
    with pytest.raises(ValueError, match="at most 32 times as long as wide, got 300 x 8"):
        audit([Image.new("RGB", (300, 8))], limits)

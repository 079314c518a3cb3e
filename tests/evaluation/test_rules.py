import re
from dataclasses import replace

import pytest
from onbrand.evaluation.criteria import CRITERIA, RULES, Range
from onbrand.evaluation.limits import limits_from
from onbrand.evaluation.look.foreground import look
from onbrand.evaluation.rules import compared, describe, describe_limits, judge


def test_a_picture_at_the_limit_passes_and_beyond_it_fails(draw):
    seen = look(draw())
    limits = limits_from([seen] * 30)
    at, beyond = (seen.values | {"offset_x": limits.pooled["offset_x"].high + step} for step in (0, 1e-6))
    assert judge(seen._replace(values=at), limits=limits) == []
    assert [failure.rule for failure in judge(seen._replace(values=beyond), limits=limits)] == ["centring"]


def test_a_blank_picture_breaks_scale_alone_however_varied_the_catalogue(draw):
    limits = limits_from([look(draw(size=(s, s))) for s in (0.2, 0.4, 0.6, 0.8)])
    assert limits.pooled["area"].low == 0
    failures = judge(look(draw(colour=None)), limits=limits)
    assert failures[0] == ("scale", "no product stands out from the backdrop")
    assert {failure.rule for failure in failures} <= {"scale", "kind"}


def test_every_criterion_says_the_value_and_its_limit():
    for name, criterion in CRITERIA.items():
        words = describe(name, 0.5, allowed=Range(0.125, 0.25))
        assert re.search(r"0\.5|50", words), words
        assert re.search(r"0\.2|25|0\.3|0\.125", words), (words, criterion)


def test_every_rule_says_what_it_allows(draw):
    limits = limits_from([look(draw(seed=i)) for i in range(20)])
    told = [describe_limits(limits, rule=rule) for rule in RULES]
    assert len(set(told)) == len(RULES)
    assert told[RULES.index("pose")] == "outline within 10% of the catalogue's nearest"
    assert "depth" in told[RULES.index("shadow")]
    assert told[RULES.index("kind")].endswith("times as far as the catalogue's own")


def test_what_is_compared_stands_beside_the_measures(draw):
    seen = look(draw())
    found = compared(seen, limits=limits_from([look(draw(seed=i)) for i in range(20)]))
    assert found == pytest.approx(seen.values | {key: found[key] for key in ("background", "pose", "kind")})
    assert found["pose"] < 0.1
    assert 0 < found["background"] < 1


@pytest.mark.parametrize(
    ("name", "value", "allowed", "words"),
    [
        ("background", 3.04, Range(0, 3), "is Delta E 3.04 from the catalogue's, at most 3.00"),
        ("background", 3.0004, Range(0, 3), "is Delta E 3.0004 from the catalogue's, at most 3.0000"),
        (
            "offset_x",
            0.0204,
            Range(-0.02, 0.02),
            "+2.04% sideways (right is +), allowed -2.00% to +2.00%",
        ),
        (
            "offset_y",
            -0.0204,
            Range(-0.02, 0.01),
            "-2.04% up or down (down is +), allowed -2.00% to +1.00%",
        ),
        ("offset_x", -0.0304, Range(-0.02, 0.02), "sits -3.0% sideways (right is +), allowed -2.0% to +2.0%"),
        ("pose", 0.174, Range(0, 0.171), "differs by 17.4% from the nearest in the catalogue, at most 17.1%"),
        ("text", 0.2799, Range(0.28, 1000), "score with its caption is 0.2799, at least 0.2800"),
    ],
)
def test_a_value_that_reads_like_its_limit_is_told_with_more_digits(name, value, allowed, words):
    assert words in describe(name, value, allowed=allowed)


def test_no_zero_has_a_minus(draw):
    limits = limits_from([look(draw(seed=i)) for i in range(20)])
    limits = replace(limits, backdrops=((98.61, -0.0031, 0.002),), pooled=limits.pooled | {
        "offset_x": Range(-0.00001, 0.02)})  # fmt: skip
    assert describe_limits(limits, rule="background").endswith("Lab (98.6, 0.0, 0.0)")
    assert describe_limits(limits, rule="centring").startswith("x 0.0% to 2.0%, y ")
    assert "allowed +0.0% to" in describe("offset_x", 0.5, allowed=limits.pooled["offset_x"])


def test_an_end_that_no_value_can_pass_is_not_told(draw):
    limits = limits_from([look(draw(seed=i)) for i in range(20)])
    open_ends = {"lightness": Range(0, 100), "contrast": Range(9.6, 100), "light_slope": Range(-10, 0.1)}
    limits = replace(limits, pooled=limits.pooled | open_ends)
    told = "L any, contrast at least 10, at most +10% brighter to the right"
    assert describe_limits(limits, rule="light") == told

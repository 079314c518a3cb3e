import re

import pytest
from onbrand.evaluation.criteria import CRITERIA, RULES, Range
from onbrand.evaluation.foreground import look
from onbrand.evaluation.limits import limits_from
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

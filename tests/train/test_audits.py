"""The limits of a run: kept where they are, set anew where their file was deleted."""

from types import SimpleNamespace

import pytest
from onbrand.data import Catalogue, Picture
from onbrand.data.processes import ALONE
from onbrand.evaluation.limits import limits_from
from onbrand.evaluation.look.foreground import look
from onbrand.train import audits, judge
from PIL import Image, ImageDraw


def picture(left: int) -> Image.Image:
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).rectangle((left, 20, left + 20, 50), fill="navy")
    return image


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """A run whose limits, if they are fixed anew, are those of six pictures."""
    limits = limits_from([look(picture(18 + i)) for i in range(6)])
    monkeypatch.setattr(audits, "load_base", lambda model: SimpleNamespace(vae=SimpleNamespace(to=str)))
    monkeypatch.setattr(audits, "fix_limits", lambda part, vae, processes: limits)
    accelerator = SimpleNamespace(device="cpu")
    return SimpleNamespace(
        run=tmp_path, processes=ALONE, accelerator=accelerator, config=SimpleNamespace(model=None)
    )


def test_deleted_limits_are_set_anew_and_kept(stage, monkeypatch):
    prepared = SimpleNamespace(train=None)
    found = audits.limits_of(stage, prepared)
    assert found.n == 6
    monkeypatch.setattr(audits, "fix_limits", None)  # what is there is not set again
    assert audits.limits_of(stage, prepared) == found


def test_limits_of_other_rules_are_refused_with_what_to_do(stage):
    (stage.run / "limits.json").write_text('{"pooled": {"background": [0, 3]}}')
    with pytest.raises(ValueError, match=r"limits\.json must hold .* delete limits\.json and audit\.json"):
        audits.limits_of(stage, None)


@pytest.mark.parametrize(("most", "rows"), [(4, [0, 1, 6, 7]), (100, list(range(8)))])
def test_of_many_held_out_pictures_as_many_are_judged_as_limits_are_fixed_from(monkeypatch, most, rows):
    def decode_rows(vae, part, rows, processes):
        return [picture(18 + row) for row in rows]

    monkeypatch.setattr(judge, "CALIBRATION_PICTURES", most)
    monkeypatch.setattr(judge, "decode_rows", decode_rows)
    kinds = ["mug"] * 6 + ["bag"] * 2
    catalogue = Catalogue(Picture(b"", f"{kind} {i}", kind, row=i) for i, kind in enumerate(kinds))
    limits = limits_from([look(picture(18 + i)) for i in range(8)])
    audited = judge.audit_held_out(SimpleNamespace(catalogue=catalogue), None, limits=limits)
    assert audited.prompts == [f"{kinds[row]} {row}" for row in rows]
    assert audited.report.n == len(audited.pictures) == len(rows)

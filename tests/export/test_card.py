"""The model card, read back as the hub reads it, and its code run as a reader would."""

import re

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from onbrand.export.card import start_facts, write_card
from onbrand.inference import OffsetStableDiffusionPipeline
from onbrand.pca import StartDistribution
from PIL import Image

AUDIT = {"pass_rate": 0.875, "n": 64, "rules": {"background": 0.875, "light": 1.0}}
PLAIN = {"pass_rate": 0.25, "n": 48, "rules": {"background": 0.25, "scale": 0.5}}
BASE = "someone/some-model"


@pytest.fixture
def write(tmp_path):
    def make(**changes):
        options = {"title": "Mugs", "audit": None, "base": BASE} | changes
        return write_card(tmp_path, **options).read_text(encoding="utf-8")

    return make


def front_matter(text):
    return yaml.safe_load(text.split("---\n")[1])


def table(text):
    """The rows of the one table, by first cell."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_the_front_matter_says_what_the_hub_asks_for(write):
    data = front_matter(write(audit=AUDIT, license="openrail"))
    assert data["library_name"] == "diffusers"
    assert data["pipeline_tag"] == "text-to-image"
    assert data["base_model"] == BASE
    assert data["license"] == "openrail"
    assert "onbrand" in data["tags"]
    [model] = data["model-index"]
    assert model["name"] == "Mugs"
    [result] = model["results"]
    assert result["task"]["type"] == "text-to-image"
    assert result["metrics"][0]["value"] == 0.875


def test_the_hub_reads_the_card_and_the_same_result(write, tmp_path):
    write(audit=AUDIT)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.eval_results[0].metric_value == 0.875
    assert card.data.base_model == BASE
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize(
    ("base", "named"),
    [("tiny-base", "tiny-base"), ("/home/me/models/sd15/", "sd15"), ("..\\models\\sd.ckpt", "sd.ckpt")],
)
def test_of_a_path_only_the_last_part_is_told(write, base, named):
    text = write(base=base)
    assert "base_model" not in front_matter(text)
    assert f"`{named}`" in text
    assert "models" not in text


def test_an_existing_folder_is_no_hub_id(write, tmp_path, monkeypatch):
    (tmp_path / "models/sd15").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    text = write(base="models/sd15")
    assert "base_model" not in front_matter(text)
    assert "`sd15`" in text


def test_what_is_not_given_is_left_out(write):
    text = write()
    data = front_matter(text)
    assert not {"license", "model-index", "metrics", "datasets"} & set(data)
    assert not re.search(r"None|\d %|##\s+(Facts|On-brand audit)|!\[|pipeline\.py|class_name", text)
    assert "## Loading" in text
    assert "## Limits" in text


def test_the_table_has_a_column_an_audit_and_a_row_a_rule(write):
    text = write(audit=AUDIT, comparisons={"from_pure_noise": PLAIN, "a | b": AUDIT})
    rows = table(text)
    assert rows["rule"] == ["from pure noise", r"a \| b", "from start distribution"]
    assert rows["background"] == ["25.0 %", "87.5 %", "87.5 %"]
    assert rows["scale"] == ["50.0 %", "", ""]
    assert rows["light"] == ["", "100.0 %", "100.0 %"]
    assert rows["all rules"] == ["25.0 ± 6.2 %", "87.5 ± 4.1 %", "87.5 ± 4.1 %"]
    assert rows["pictures"] == ["48", "64", "64"]


def test_the_models_own_audit_stands_once(write):
    text = write(audit=AUDIT, comparisons={"from_start_distribution": PLAIN})
    assert table(text)["rule"] == ["from start distribution"]
    assert table(text)["pictures"] == ["64"]


def test_it_says_what_a_plain_pipeline_loses(write):
    both = write(audit=AUDIT, comparisons={"from pure noise": PLAIN})
    expected = "From pure noise 25.0 ± 6.2 % of its pictures pass the audit, from its start distribution 87.5"
    assert expected in both
    alone = write(comparisons={"from pure noise": PLAIN})
    assert "From pure noise 25.0 ± 6.2 % of its pictures pass the audit." in alone
    assert "pass the audit" not in write(audit=AUDIT)


def test_pictures_are_copied_and_shown(write, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    paths = [elsewhere / "one two.PNG", elsewhere / "b.jpg"]
    for path, colour in zip(paths, ("red", "blue"), strict=True):
        Image.new("RGB", (8, 8), colour).save(path)
    text = write(pictures=paths)
    for path, name in zip(paths, ("card_1.png", "card_2.jpg"), strict=True):
        assert f"]({name})" in text
        assert (tmp_path / name).read_bytes() == path.read_bytes()
    assert text.index("card_1.png") < text.index("## Loading")
    assert "](card_1.png)" in write(pictures=[tmp_path / "card_1.png"])


def test_facts_are_listed(write):
    many = [f"class {i}" for i in range(50)]
    text = write(
        facts={"steps": 900, "classes": {"mug": 12, 'a "big" hat': 3}, "samplers": ["A", "B"], "of": many}
    )
    assert "- steps: 900\n" in text
    assert '- classes: mug (12), a "big" hat (3)\n' in text
    assert "- samplers: A, B\n" in text
    assert "class 39, and 10 more\n" in text
    assert "class 40" not in text


def fit(shape, ids, **options):
    x = torch.randn(len(ids), *shape, generator=torch.Generator().manual_seed(0))
    names = ["mug", "shoe", "hat"]
    return StartDistribution.fit(x, torch.tensor(ids), class_names=names, allow_empty=True, **options)


def test_the_facts_of_a_start_distribution():
    samplers = [("DDIMScheduler", 20, None), ("EulerDiscreteScheduler", 30, "trailing")]
    start = fit((4, 8, 8), [0, 0, 1], samplers=samplers, offset_from=941)
    start.add_bucket(fit((4, 8, 12), [0, 1], samplers=samplers, offset_from=941))
    assert start_facts(start, vae_scale_factor=4) == {
        "classes": {"mug": 3, "shoe": 2},
        "sizes (height x width, pixels)": ["32 x 32", "32 x 48"],
        "declared samplers": [
            "DDIMScheduler with 20 steps",
            "EulerDiscreteScheduler with 30 steps (trailing)",
        ],
        "offset range": "timesteps 941 to 999",
    }


def test_an_empty_offset_range_and_unknown_counts_are_left_out():
    start = StartDistribution(class_names=["mug"], latent_shape=[4, 8, 8], skip_interval=0, offset_from=1000)
    facts = start_facts(start)
    assert facts == {"classes": ["mug"], "sizes (height x width, pixels)": ["64 x 64"]}


def test_the_code_of_the_card_loads_the_folder(tiny, tmp_path, monkeypatch):
    start = fit(tiny.LATENT_SHAPE, [0, 1, 2])
    OffsetStableDiffusionPipeline(**tiny.make_components(), start_distribution=start).save_pretrained(
        tmp_path
    )
    (tmp_path / "pipeline.py").write_text("")
    example = {"num_inference_steps": 20, "guidance_scale": 2.0}
    facts = start_facts(start)
    card = write_card(tmp_path, title="Mugs", audit=None, base=BASE, facts=facts, example=example)
    ours, plain = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    monkeypatch.setattr(OffsetStableDiffusionPipeline, "__call__", called := Called())
    exec(ours.replace("path/to/this/folder", str(tmp_path)), {})
    assert called.with_ == (("a mug",), {**example, "class_name": "mug"})
    assert "custom_pipeline=folder, trust_remote_code=True" in plain
    compile(plain, "card", "exec")


class Called:
    """Stands in for a pipeline's call and keeps its arguments."""

    images = (None,)

    def __call__(self, *args, **kwargs):
        self.with_ = args, kwargs
        return self


def test_errors(tmp_path, write):
    with pytest.raises(ValueError, match=r"folder must exist, got '.*missing'"):
        write_card(tmp_path / "missing", title="Mugs", audit=None, base=BASE)
    with pytest.raises(ValueError, match=r"picture must be an existing file, got '.*none.png'"):
        write(pictures=[tmp_path / "none.png"])
    with pytest.raises(ValueError, match=r"'from start distribution' must hold .*, got no n and rules"):
        write(audit={"pass_rate": 0.5})
    with pytest.raises(ValueError, match="audit 'base model' must hold pass_rate, n and rules, got no rules"):
        write(comparisons={"base_model": {"pass_rate": 0.5, "n": 3}})
    assert list(tmp_path.iterdir()) == []

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from onbrand.configs import ConfigError, config_of, differences, load_config, parse_config, recipe_names


def test_every_recipe_loads_and_opens_with_its_command() -> None:
    assert {"quickstart", "demo"} <= set(recipe_names())
    for name in recipe_names():
        config = load_config(name)
        assert config.run.dir == f"runs/{name}"
        first = (Path(load_config.__code__.co_filename).parent / f"{name}.yaml").read_text().splitlines()[0]
        assert first.startswith("# ")


def test_overrides_reach_any_depth_and_keep_their_types(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train: {steps: 5}\n")
    config = load_config(
        str(file),
        ["train.learning_rate=1e-4", "start.enabled=false", "data.studio.pictures=7", "run.dir=x/y"],
    )
    assert (config.train.steps, config.train.learning_rate) == (5, 1e-4)
    assert not config.start.enabled
    assert (config.data.studio.pictures, config.run.dir) == (7, "x/y")


def test_no_is_a_word_as_mixed_precision() -> None:
    assert config_of(["train.mixed_precision=no"]).train.mixed_precision == "no"
    with pytest.raises(ConfigError, match=r"train.mixed_precision: .*, got True"):
        config_of(["train.mixed_precision=yes"])


def test_a_colour_by_its_number_is_no_comment() -> None:
    assert config_of(["data.backdrop=#d9d9d9"]).data.backdrop == "#d9d9d9"


def test_all_problems_come_at_once_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(
            {
                "train": {"lerning_rate": 1, "steps": 0},
                "dta": {},
                "start": {"samplers": [{"scheduler": "D", "stepz": 1}]},
            }
        )
    text = str(caught.value)
    assert "5 problem(s)" in text
    assert "train.lerning_rate: unknown key; did you mean learning_rate?" in text
    assert "train.steps: input should be greater than or equal to 1, got 0" in text
    assert "dta: unknown key; did you mean data?" in text
    assert "start.samplers.0.stepz: unknown key; did you mean steps?" in text


def test_unknown_key_without_a_near_name_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match="known keys: dir, seed, processes, tracker, audit"):
        parse_config({"run": {"xyzzy": 1}})


def test_image_classes_must_name_image_columns() -> None:
    with pytest.raises(
        ConfigError, match=r"must name columns of data.image_columns \['image'\], got \['worn'\]"
    ):
        config_of([], data={"source": "shop", "image_classes": {"worn": "person"}})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "override must be key.sub=value, got 'train.steps'"),
        ("=3", "override must be key.sub=value"),
    ],
)
def test_malformed_overrides(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("quickstart", [override])


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean quickstart"):
        load_config("quickstrt")


def test_files_that_are_no_config(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "bad.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError, match="must be a mapping of sections, got list"):
        load_config(str(tmp_path / "list.yaml"))
    with pytest.raises(ConfigError, match="must be valid YAML"):
        load_config(str(tmp_path / "bad.yaml"))


def test_differences_name_keys_and_both_values() -> None:
    before = {"train": {"steps": 1, "seed": 2}, "x": 1}
    assert differences(before, {"train": {"steps": 3, "seed": 2}, "x": 1}) == ["train.steps: 1 -> 3"]
    assert differences(before, before) == []


def test_every_launch_config_is_one_that_accelerate_reads() -> None:
    folder = Path(load_config.__code__.co_filename).parent / "launch"
    kinds = {}
    for file in sorted(folder.glob("*.yaml")):
        kinds[file.stem] = load_config_from_file(str(file)).distributed_type.value
        assert f"--config_file {file.name} -m onbrand train" in file.read_text().splitlines()[0]
    assert kinds == {"ddp": "MULTI_GPU", "deepspeed-zero2": "DEEPSPEED", "fsdp2": "FSDP"}


@pytest.mark.parametrize("key", ["noise_offset", "multires_noise_iterations", "zero_terminal_snr"])
def test_another_schemes_start_is_refused_with_the_reason(key: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"train.{key}: must be left out, got 0.1: (it shifts the noise|with alpha_T)"
    ):
        config_of([f"train.{key}=0.1", "train.steps=5"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.method=frozen"], "must train something, got all frozen"),
        (
            ["model.controlnet.condition=mask"],
            "column must be a column of pictures with condition mask, got None",
        ),
        (["model.controlnet={column: a}"], "column must be left out with condition segment, got 'a'"),
        (["model.token.word=two words"], "model.token.word: string should match pattern"),
        (["data.buckets=[[64, 60]]"], "data.buckets.0.1: input should be a multiple of 8, got 60"),
        (["train.optimizer=adam"], "train.optimizer: input should be 'adamw'"),
        (
            ["train.optimizer=prodigy"],
            "learning_rate must be about 1 with prodigy, which multiplies it, got 1e-05",
        ),
        (
            ["train.optimizer=prodigy", "train.learning_rate=1", "train.text_encoder_learning_rate=0.5"],
            r"train\.text_encoder_learning_rate must be left out with prodigy, got 0\.5",
        ),
        (
            ["data.class_column=kind"],
            r"data\.class_column must be left out with source photo-studio, which has no columns, got 'kind'",
        ),
        (["data.image_columns=[front]"], r"data\.image_columns must be left out with source photo-studio"),
        (["data.image_classes={image: a}"], r"data\.image_classes must be left out with source photo-studio"),
        (["data.caption_column=name"], r"data\.caption_column must be left out with source photo-studio"),
        (["start.samplers=[]"], r"start\.samplers: list should have at least 1 item"),
        (["model.lora.targets=[]"], "model.lora.targets: list should have at least 1 item"),
        (["start.family=ica"], "start.family: input should be 'pca', 'pooled', 'diagonal', 'dct' or 'text'"),
        (["start.family=text"], "start.components must be at least 1 with family text, got 0"),
        (
            ["start.family=dct", "start.components=2"],
            "start.components must be 0 with family dct, got 2",
        ),
        (
            ["start.family=text", "start.components=2", "model.text_encoder=lora"],
            "model.text_encoder must be frozen with start.family text, fitted to its embeddings, got lora",
        ),
        (["run.processes=0"], "run.processes: input should be greater than or equal to 1, got 0"),
    ],
)
def test_values_that_cannot_be_meant(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(overrides)

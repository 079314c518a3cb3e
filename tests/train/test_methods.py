"""Every thing that can be trained, on every family of bases, with and without the offset: a short run, what
it changed, and that what it ships loads elsewhere."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from onbrand.configs import Config, config_of
from onbrand.configs.schema import ModelConfig
from onbrand.inference import load_pipeline
from onbrand.inference.text import text_encoders, tokenize
from onbrand.train.metrics import read_metrics
from onbrand.train.models import load_base, prepare_networks
from onbrand.train.prepare import split_catalogue
from onbrand.train.run import run_training
from onbrand.train.text import embed
from peft.tuners.tuners_utils import BaseTunerLayer
from rich.console import Console

QUIET = Console(quiet=True)
MakeConfig = Callable[..., Config]
SHORT = {
    "train__steps": 2,
    "train__checkpoint_every": 2,
    "train__preview_every": 2,
    "train__validate_every": 2,
    "run__audit__pictures": 2,
    "run__audit__steps": 2,
    "train__ema_decay": 0,
}
METHODS = {
    "full": {"method": "full"},
    "full and text": {"method": "full", "text_encoder": "full"},
    "lora": {"method": "lora", "lora__rank": 2},
    "lora and text": {"method": "lora", "text_encoder": "lora", "lora__rank": 2},
    "dora": {"method": "lora", "lora__rank": 2, "lora__dora": True},
    "rslora": {"method": "lora", "lora__rank": 2, "lora__rslora": True},
    "lora on all layers": {"method": "lora", "lora__rank": 2, "lora__targets": "[all]"},
    "attention": {"method": "attention"},
    "text": {"method": "frozen", "text_encoder": "full"},
    "token": {"method": "frozen", "text_encoder": "token", "token__initial": "a"},
    "controlnet": {"method": "frozen", "controlnet": "{condition: segment}"},
    "controlnet and lora": {"method": "lora", "controlnet": "{condition: segment}", "lora__rank": 2},
}
# where weights change: parts of the shipped pipeline, and a word all changed names hold
CHANGES = {
    "full": {"unet": ""},
    "full and text": {"unet": "", "text_encoder": ""},
    "lora": {"unet": "attn"},
    "lora and text": {"unet": "attn", "text_encoder": "attn"},
    "dora": {"unet": "attn"},
    "rslora": {"unet": "attn"},
    "lora on all layers": {"unet": "block"},
    "attention": {"unet": "attn"},
    "text": {"text_encoder": ""},
    "token": {"text_encoder": "token_embedding"},
    "controlnet": {},
    "controlnet and lora": {"unet": "attn"},
}


@pytest.fixture(scope="module")
def bases(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        "sd1": tiny.save_base(folder / "sd1"),
        "sd2-v": tiny.save_v_base(folder / "sd2"),
        "sdxl": tiny.save_xl_base(folder / "sdxl"),
    }


def options_of(method: str) -> dict[str, object]:
    return {f"model__{key}": value for key, value in METHODS[method].items()}


# what differs between families is the text and the prediction, so not every pair needs a run
PAIRS = [
    *(("sd1", method) for method in METHODS),
    *(("sd2-v", method) for method in ("full", "lora and text", "controlnet")),
    *(("sdxl", method) for method in ("full", "full and text", "lora and text", "token", "controlnet")),
]


@pytest.mark.parametrize(("family", "method"), PAIRS)
def test_a_run_changes_what_it_says_and_nothing_else(
    make_config: MakeConfig, bases: dict[str, Path], family: str, method: str
) -> None:
    offset = {"start__emphasis": 0.5}
    run = run_training(
        make_config(model__base=bases[family], **SHORT, **offset, **options_of(method)), console=QUIET
    )
    assert all(row["loss"] > 0 for row in read_metrics(run))
    base = load_base(ModelConfig(base=str(bases[family])))
    shipped = load_pipeline(run / "model", torch_dtype=torch.float32)
    encoders = ["text_encoder"] + (["text_encoder_2"] if family == "sdxl" else [])
    for part in ("unet", "vae", *encoders):
        before, after = getattr(base, part).state_dict(), getattr(shipped, part).state_dict()
        rows = {
            key: min(len(value), len(after[key])) if value.ndim else None for key, value in before.items()
        }
        changed = [k for k, n in rows.items() if not torch.equal(before[k][:n], after[k][:n])]
        kind = part.removesuffix("_2")
        if kind in CHANGES[method] and method != "token":
            assert changed, part
            assert all(CHANGES[method][kind] in key for key in changed), changed
        else:
            assert not changed, (part, changed)
    if method == "token":
        for part in encoders:
            assert len(getattr(shipped, part).get_input_embeddings().weight) == 1 + len(
                getattr(base, part).get_input_embeddings().weight
            )
    assert ("controlnet" in shipped.components) == ("controlnet" in method)


@pytest.mark.parametrize(
    ("family", "method"), [("sdxl", "full"), ("sd1", "lora"), ("sd1", "token"), ("sd1", "controlnet")]
)
def test_every_method_also_trains_without_the_offset(
    make_config: MakeConfig, bases: dict[str, Path], family: str, method: str
) -> None:
    options = {**SHORT, **options_of(method), "start__enabled": False}
    run = run_training(make_config(model__base=bases[family], **options), console=QUIET)
    assert load_pipeline(run / "model").start_distribution.offset_from == 1000
    assert not any("loss_offset_range" in row for row in read_metrics(run))


@pytest.mark.parametrize("targets", ["[to_q, to_v]", "[all]"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_adapters_in_lora_load_into_the_base_with_diffusers(
    make_config: MakeConfig, bases: dict[str, Path], family: str, targets: str
) -> None:
    options = {**SHORT, **options_of("lora and text"), "model__lora__alpha": 1, "train__learning_rate": 0.05}
    options["model__lora__targets"] = targets
    run = run_training(make_config(model__base=bases[family], **options), console=QUIET)
    plain = (StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline).from_pretrained(
        bases[family]
    )
    plain.load_lora_weights(run / "lora")
    plain.fuse_lora()
    plain.unload_lora_weights()
    shipped = load_pipeline(run / "model")
    for part in ("unet", "text_encoder"):
        expected = getattr(shipped, part).state_dict()
        for key, value in getattr(plain, part).state_dict().items():
            torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-6)


def test_a_token_loads_into_the_base_with_diffusers(make_config: MakeConfig, bases: dict[str, Path]) -> None:
    run = run_training(make_config(model__base=bases["sd1"], **SHORT, **options_of("token")), console=QUIET)
    plain = StableDiffusionPipeline.from_pretrained(bases["sd1"])
    plain.load_textual_inversion(run / "token", weight_name="learned_embeds.safetensors", token="<brand>")
    shipped = load_pipeline(run / "model")
    ids = shipped.tokenizer("<brand> mug").input_ids
    assert plain.tokenizer("<brand> mug").input_ids == ids
    rows = [p.text_encoder.get_input_embeddings().weight[ids[1]] for p in (plain, shipped)]
    assert torch.equal(rows[0], rows[1])


def test_captions_are_given_the_new_word(make_config: MakeConfig, bases: dict[str, Path]) -> None:
    config = make_config(model__base=bases["sd1"], **SHORT, **options_of("token"))
    for part in split_catalogue(config):
        assert all(caption.startswith("<brand>") for caption in part.captions)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_what_ships_loads_as_diffusers_own_class(
    make_config: MakeConfig, bases: dict[str, Path], family: str
) -> None:
    run = run_training(make_config(model__base=bases[family], **SHORT), console=QUIET)
    plain_class = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    plain: DiffusionPipeline = plain_class.from_pretrained(run / "model")
    picture = plain("a mug", num_inference_steps=2, height=64, width=64, output_type="np").images[0]
    assert picture.shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "lora", "lora__targets": "[to_q, to_qq]"},
            r"lora.targets must match modules of the UNet, got \['to_qq'\]",
        ),
        (
            {"text_encoder": "lora", "lora__text_encoder_targets": "[q]"},
            r"text_encoder_targets must match modules of the text encoder, got \['q'\]",
        ),
        ({"text_encoder": "token", "token__word": "a"}, "token.word must be a new word, got 'a'"),
        (
            {"text_encoder": "token", "token__initial": "mug"},
            "token.initial must be one token of the tokenizer, got 'mug' with 3",
        ),
        (
            {"controlnet": "{source: /no/such}"},
            "controlnet.source must be unet, a ControlNet's folder or a hub id, got '/no/such'",
        ),
        (
            {"controlnet": "{condition: mask, column: mask}"},
            "condition must be segment for photo-studio, which has no column 'mask'",
        ),
    ],
)
def test_what_the_base_cannot_be_trained_by_is_said_at_once(
    make_config: MakeConfig, tmp_path: Path, options: dict, message: str
) -> None:
    changes = {f"model__{key}": value for key, value in options.items()}
    with pytest.raises(ValueError, match=message):
        run_training(make_config(**SHORT, **changes), console=QUIET)
    assert not (tmp_path / "latents").exists()


def test_frozen_weights_take_the_training_precision_and_trained_ones_stay_float32(
    bases: dict[str, Path],
) -> None:
    for method in METHODS:
        values = {k.replace("__", "."): v for k, v in METHODS[method].items()}
        config = config_of([f"model.{k}={v}" for k, v in values.items()], model={"base": str(bases["sd1"])})
        networks = prepare_networks(load_base(config.model), config.model, weight_dtype=torch.bfloat16)
        for network in networks.denoiser.networks:
            for name, parameter in network.named_parameters():
                expected = torch.float32 if parameter.requires_grad else torch.bfloat16
                assert parameter.dtype == expected, (method, name)
        assert all(p.dtype == torch.float32 for p in networks.pipeline.vae.parameters())


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_lora_on_all_layers_adapts_every_layer_of_the_blocks(bases: dict[str, Path], family: str) -> None:
    config = config_of(
        ["model.lora.targets=[all]"], model={"base": str(bases[family]), "method": "lora"}
    ).model
    unet = prepare_networks(load_base(config), config).pipeline.unet
    adapted = {name for name, module in unet.named_modules() if isinstance(module, BaseTunerLayer)}
    base = load_base(config).unet
    assert adapted == {
        name
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and "block" in name
    }


def test_dora_trains_magnitudes_and_rslora_scales_by_the_root_of_the_rank(bases: dict[str, Path]) -> None:
    def networks(**lora: object):
        overrides = [f"model.lora.{key}={value}" for key, value in lora.items()]
        config = config_of(overrides, model={"base": str(bases["sd1"]), "method": "lora"})
        return prepare_networks(load_base(config.model), config.model)

    names = [[name for name, _ in networks(rank=4, dora=dora).denoiser.trained()] for dora in (False, True)]
    assert not any("magnitude" in name for name in names[0])
    assert any("magnitude" in name for name in names[1])
    for rslora, expected in ((False, 8 / 4), (True, 8 / 4**0.5)):
        unet = networks(rank=4, alpha=8, rslora=rslora).pipeline.unet
        scales = {m.scaling["default"] for m in unet.modules() if isinstance(m, BaseTunerLayer)}
        assert scales == {expected}


def test_a_new_word_leaves_sdxl_pooling_at_the_captions_end(tiny: ModuleType, tmp_path: Path) -> None:
    components = tiny.make_xl_components()
    for name in ("text_encoder", "text_encoder_2"):  # as the published configs say
        components[name].config.eos_token_id = 2
        for module in components[name].modules():
            if hasattr(module, "eos_token_id"):
                module.eos_token_id = 2
    StableDiffusionXLPipeline(**components).save_pretrained(tmp_path / "base")
    config = config_of(
        ["model.text_encoder=token", "model.method=frozen", "model.token.initial=a"],
        model={"base": str(tmp_path / "base")},
    )
    pipeline = load_base(config.model)
    prepare_networks(pipeline, config.model)
    embeds = embed(text_encoders(pipeline), tokenize(pipeline, ["<brand> mug", "<brand> hat"]))
    assert not torch.allclose(embeds.pooled[0], embeds.pooled[1], atol=1e-3)


def test_a_new_word_goes_before_class_prefixes(make_config: MakeConfig, bases: dict[str, Path]) -> None:
    options = {**SHORT, **options_of("token"), "data__class_prefixes": "{mug: a cup}"}
    train, _ = split_catalogue(make_config(model__base=bases["sd1"], **options))
    mugs = [c for c, p in zip(train.captions, train.pictures, strict=True) if p.class_name == "mug"]
    assert mugs
    assert all(caption.startswith("<brand>") for caption in train.captions)

"""LoRA files: merged by hand from their names they are what peft merges, diffusers draws the same from them,
and what does not belong is refused by name."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from onbrand.export.ldm_names import SDXL_BLOCKS, unet_blocks, unet_name
from onbrand.export.lora import (
    FILE_NAME,
    check_lora_fits,
    kohya_lora,
    kohya_metadata,
    read_lora,
    read_tensors,
    save_kohya_lora,
)
from onbrand.export.lora_names import diffusers_layers, portable_metadata, split_key
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
CONVOLUTIONS = ["conv1", "conv2", "conv", "conv_in", "conv_shortcut", "proj_in", "time_emb_proj"]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"lora_alpha": 3},
    "rslora": {"lora_alpha": 3, "use_rslora": True},
    "dora": {"lora_alpha": 3, "use_dora": True},
    "patterns": {"lora_alpha": 3, "rank_pattern": {"attn2.to_k": 4}, "alpha_pattern": {"attn1.to_v": 5}},
    "convolutions": {"lora_alpha": 3, "target_modules": ATTENTION + CONVOLUTIONS},
    "dora convolutions": {"lora_alpha": 3, "use_dora": True, "target_modules": ATTENTION + CONVOLUTIONS},
}
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1"]
# what diffusers' own reader of original names leaves to be renamed
RENAMED = {"unet_input_blocks_0_0": "unet_conv_in", "unet_input_blocks": "unet_down_blocks"}
RENAMED |= {"unet_middle_block": "unet_mid_block", "unet_output_blocks": "unet_up_blocks"}
RENAMED |= {"in_layers_2": "conv1", "out_layers_3": "conv2", "emb_layers_1": "time_emb_proj"}
RENAMED |= {"skip_connection": "conv_shortcut", "downsamplers_0_op": "downsamplers_0_conv"}


@dataclass
class Case:
    """A base with adapters on it, and the folder of its LoRA in diffusers' format."""

    family: str
    variant: str
    base: Path
    pipeline: Any
    folder: Path

    def fresh(self) -> Any:
        return pipeline_class(self.family).from_pretrained(self.base)


def pipeline_class(family: str) -> Any:
    return StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline


def encoder_names(pipeline: Any) -> list[str]:
    return ["text_encoder"] + (["text_encoder_2"] if hasattr(pipeline, "text_encoder_2") else [])


def adapt(pipeline: Any, variant: str, generator: torch.Generator) -> None:
    """Adapters with random weights, so that none is without effect."""
    options = VARIANTS[variant]
    pipeline.unet.add_adapter(LoraConfig(r=2, **{"target_modules": ATTENTION} | options))
    text = options | {"target_modules": TEXT_TARGETS, "alpha_pattern": {}}
    for name in encoder_names(pipeline):
        encoder = getattr(pipeline, name)
        layer = "encoder.layers.0.self_attn.k_proj"
        if variant == "patterns":  # by the full name, as the encoder has it
            prefix = "text_model." if hasattr(encoder, "text_model") else ""
            text["rank_pattern"] = {f"{prefix}{layer}": 4}
        encoder.add_adapter(LoraConfig(r=2, **text))
    for name in ["unet", *encoder_names(pipeline)]:
        for key, parameter in getattr(pipeline, name).named_parameters():
            if "lora_magnitude" in key:
                noise = torch.rand(parameter.shape, generator=generator)
                parameter.data *= 0.5 + noise
            elif "lora_" in key:
                parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
        getattr(pipeline, name).requires_grad_(False).eval()


def save_diffusers(pipeline: Any, folder: Path) -> Path:
    options: dict[str, Any] = {}
    for name in ["unet", *encoder_names(pipeline)]:
        network = getattr(pipeline, name)
        layers = diffusers_layers(get_peft_model_state_dict(network), text_encoder=name != "unet")
        options[f"{name}_lora_layers"] = layers
        metadata = portable_metadata(network.peft_config["default"].to_dict())
        options[f"{name}_lora_adapter_metadata"] = metadata
    type(pipeline).save_lora_weights(folder, **options)
    return folder


@pytest.fixture(scope="module")
def bases(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {"sd1": tiny.save_base(folder / "sd1"), "sdxl": tiny.save_xl_base(folder / "sdxl")}


@pytest.fixture(scope="module")
def cases(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Case]:
    folder = tmp_path_factory.mktemp("loras")
    found = {}
    for family, base in bases.items():
        for number, variant in enumerate(VARIANTS):
            pipeline = pipeline_class(family).from_pretrained(base)
            adapt(pipeline, variant, torch.Generator().manual_seed(number))
            saved = save_diffusers(pipeline, folder / f"{family}-{number}")
            found[family, variant] = Case(family, variant, base, pipeline, saved)
    return found


@pytest.fixture(params=[(f, v) for f in ("sd1", "sdxl") for v in VARIANTS], ids="-".join)
def case(request: pytest.FixtureRequest, cases: dict[tuple[str, str], Case]) -> Case:
    return cases[request.param]


@pytest.fixture
def plain(cases: dict[tuple[str, str], Case]) -> Case:
    return cases["sd1", "plain"]


def weights(pipeline: Any) -> Iterator[tuple[str, str, Tensor]]:
    """Component, module by its original name, weight."""
    for component in ["unet", *encoder_names(pipeline)]:
        for name, module in getattr(pipeline, component).named_modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                flat = component != "unet" and not name.startswith(("text_model.", "text_projection"))
                yield component, f"text_model.{name}" if flat else name, module.weight.detach()


def merged_by_peft(pipeline: Any) -> dict[tuple[str, str], Tensor]:
    """Every adapted weight as peft merges it; the pipeline is as before."""
    merged = {}
    for component in ["unet", *encoder_names(pipeline)]:
        for name, layer in getattr(pipeline, component).named_modules():
            if isinstance(layer, BaseTunerLayer):
                before = layer.get_base_layer().weight.detach().clone()
                layer.merge()
                flat = component != "unet" and not name.startswith("text_model.")
                merged[component, f"text_model.{name}" if flat else name] = layer.weight.detach().clone()
                layer.unmerge()
                layer.get_base_layer().weight.data.copy_(before)
    return merged


def merged_by_hand(pipeline: Any, tensors: dict[str, Tensor]) -> dict[tuple[str, str], Tensor]:
    """A kohya file's weights over those of a plain pipeline, found by their names alone."""
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
    if hasattr(pipeline, "text_encoder_2"):
        prefixes["text_encoder"] = "lora_te1"
        mapped = _maybe_map_sgm_blocks_to_diffusers(dict(tensors), pipeline.unet.config)
        tensors = {}
        for key, value in mapped.items():
            for theirs, ours in RENAMED.items():
                key = key.replace(theirs, ours)
            tensors[key] = value
    merged, used = {}, set()
    for component, module, weight in weights(pipeline):
        name = f"{prefixes[component]}_{module.replace('.', '_')}"
        if f"{name}.lora_up.weight" not in tensors:
            continue
        keys = {key for key in tensors if key.startswith(f"{name}.")}
        up, down = tensors[f"{name}.lora_up.weight"], tensors[f"{name}.lora_down.weight"]
        assert up.ndim == down.ndim == weight.ndim
        change = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        total = weight + tensors[f"{name}.alpha"].item() / down.shape[0] * change
        if f"{name}.dora_scale" in keys:
            norms = total.flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.ndim - 1))
            assert tensors[f"{name}.dora_scale"].shape == norms.shape
            total = tensors[f"{name}.dora_scale"] * total / norms
        merged[component, module] = total
        used |= keys
    assert used == set(tensors)
    return merged


def latents(pipeline: Any) -> Tensor:
    return pipeline(
        "a mug",
        num_inference_steps=2,
        height=32,
        width=32,
        guidance_scale=3.0,
        output_type="latent",
        generator=torch.Generator().manual_seed(1),
    ).images


def test_a_kohya_file_merged_by_hand_is_what_peft_merges(case: Case, tmp_path: Path) -> None:
    fresh = case.fresh()
    file = save_kohya_lora(case.folder, tmp_path / "lora.safetensors", base=fresh)
    expected, found = merged_by_peft(case.pipeline), merged_by_hand(fresh, load_file(file))
    assert set(found) == set(expected)
    plain = {(component, name): weight for component, name, weight in weights(fresh)}
    for key, weight in found.items():
        torch.testing.assert_close(weight, expected[key], rtol=0, atol=1e-6)
        assert (weight - plain[key]).abs().max() > 1e-2


def test_diffusers_draws_the_same_picture_from_a_kohya_file(case: Case, tmp_path: Path) -> None:
    if "dora" in case.variant:
        pytest.skip("diffusers leaves kohya's magnitudes out")
    fresh = case.fresh()
    file = save_kohya_lora(case.folder, tmp_path / "lora.safetensors", base=fresh)
    before = latents(fresh)
    fresh.load_lora_weights(file.parent, weight_name=file.name)
    expected = latents(case.pipeline)
    assert (before - expected).abs().max() > 1e-2
    torch.testing.assert_close(latents(fresh), expected, rtol=0, atol=1e-5)


LOAD = """
import json, sys
import torch, diffusers
from safetensors.torch import save_file
torch.set_num_threads(1)
drawn = {}
for family, variant, base, folder in json.loads(sys.argv[1]):
    kind = diffusers.StableDiffusionXLPipeline if family == "sdxl" else diffusers.StableDiffusionPipeline
    pipeline = kind.from_pretrained(base)
    pipeline.load_lora_weights(folder)
    drawn[f"{family} {variant}"] = pipeline(
        "a mug", num_inference_steps=2, height=32, width=32, guidance_scale=3.0, output_type="latent",
        generator=torch.Generator().manual_seed(1)).images
assert not any(name.split(".")[0] == "onbrand" for name in sys.modules)
save_file(drawn, sys.argv[2])
"""


def test_the_diffusers_file_has_its_scale_elsewhere(
    cases: dict[tuple[str, str], Case], tmp_path: Path
) -> None:
    jobs = [[c.family, c.variant, str(c.base), str(c.folder)] for c in cases.values()]
    command = [sys.executable, "-c", LOAD, json.dumps(jobs), str(tmp_path / "drawn.safetensors")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    drawn = load_file(tmp_path / "drawn.safetensors")
    assert len(drawn) == len(cases)
    for (family, variant), one in cases.items():
        expected = latents(one.pipeline)
        torch.testing.assert_close(drawn[f"{family} {variant}"], expected, rtol=0, atol=1e-5)


def test_the_scale_that_is_read_is_the_one_that_peft_uses(case: Case) -> None:
    layers = read_lora(case.folder / FILE_NAME)
    adapted = {}
    for component in ["unet", *encoder_names(case.pipeline)]:
        for name, layer in getattr(case.pipeline, component).named_modules():
            if isinstance(layer, BaseTunerLayer):
                flat = component != "unet" and not name.startswith("text_model.")
                adapted[f"{component}.{'text_model.' if flat else ''}{name}"] = layer
    assert set(layers) == set(adapted)
    for name, layer in layers.items():
        assert layer.scale == pytest.approx(adapted[name].scaling["default"])
        assert layer.rank == adapted[name].r["default"]
        assert (layer.magnitude is not None) == ("dora" in case.variant)


def test_patterns_give_layers_their_own_rank_and_scale(cases: dict[tuple[str, str], Case]) -> None:
    layers = read_lora(cases["sdxl", "patterns"].folder)
    scales = {layer.scale for layer in layers.values()}
    assert scales == {3 / 2, 3 / 4, 5 / 2}
    for encoder in ("text_encoder", "text_encoder_2"):
        assert layers[f"{encoder}.text_model.encoder.layers.0.self_attn.k_proj"].rank == 4


def sdxl_unet() -> UNet2DConditionModel:
    """SDXL's blocks and layers, a few channels wide."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(4, 8, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 2),
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=28,
    )


@pytest.mark.parametrize("kind", ["sdxl", "tiny"])
def test_the_original_names_are_those_that_diffusers_reads(tiny: ModuleType, kind: str) -> None:
    """diffusers' reader of original checkpoints takes every name back to where it came from."""
    unet = sdxl_unet() if kind == "sdxl" else tiny.make_xl_unet()
    blocks = unet_blocks(unet)
    assert (blocks == SDXL_BLOCKS) == (kind == "sdxl")
    parts = [key.rpartition(".") for key in unet.state_dict()]
    values = {(module, part): torch.tensor([i]) for i, (module, _, part) in enumerate(parts)}
    original = {
        f"model.diffusion_model.{unet_name(module, blocks)}.{part}": value
        for (module, part), value in values.items()
    }
    assert len(original) == len(values)
    back = convert_ldm_unet_checkpoint(dict(original), dict(unet.config) | {"class_embed_type": None})
    assert {key: value.item() for key, value in back.items()} == {
        f"{module}.{part}": value.item() for (module, part), value in values.items()
    }


def test_names_of_published_loras(cases: dict[tuple[str, str], Case]) -> None:
    layers = {
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0": None,
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": None,
    }
    adapter = next(iter(read_lora(cases["sd1", "plain"].folder).values()))
    keys = {
        base: {key.partition(".")[0] for key in kohya_lora(dict.fromkeys(layers, adapter), base=base)}
        for base in ("sd1", "sd2", "sdxl")
    }
    assert keys["sd1"] == keys["sd2"]
    assert keys["sd1"] == {
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
    }
    assert keys["sdxl"] == {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_out_0",
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
    }
    second = {"text_encoder_2.text_model.encoder.layers.3.mlp.fc1": adapter}
    assert "lora_te2_text_model_encoder_layers_3_mlp_fc1.alpha" in kohya_lora(second, base="sdxl")


def test_text_encoder_names_are_the_original_ones(case: Case) -> None:
    tensors, header = read_tensors(case.folder)
    text = [key for key in tensors if key.startswith("text_encoder")]
    assert text
    assert all(key.split(".")[1] == "text_model" for key in text)
    assert '"text_encoder.rank_pattern"' in header["lora_adapter_metadata"]
    assert "text_model" not in header["lora_adapter_metadata"]


def test_targets_are_sorted_and_an_expression_stays() -> None:
    targets = {"text_model.encoder.layers.1.mlp.fc1", "encoder.layers.0.mlp.fc1"}
    expected = ["encoder.layers.0.mlp.fc1", "encoder.layers.1.mlp.fc1"]
    assert portable_metadata({"target_modules": targets})["target_modules"] == expected
    assert portable_metadata({"target_modules": ".*q_proj"})["target_modules"] == ".*q_proj"


def test_every_layer_of_a_network_is_in_one_spelling(case: Case) -> None:
    tensors = read_tensors(case.folder)[0]
    endings = {
        component: {".".join(key.split(".")[-3:]) for key in tensors if key.startswith(f"{component}.")}
        for component in ["unet", *encoder_names(case.pipeline)]
    }
    for component, found in endings.items():
        weights = {ending for ending in found if "magnitude" not in ending}
        layer = "lora" if component == "unet" else "lora_linear_layer"
        assert weights == {f"{layer}.down.weight", f"{layer}.up.weight"}
        assert (found != weights) == ("dora" in case.variant)


def test_the_header_says_what_kohyas_scripts_say(cases: dict[tuple[str, str], Case], tmp_path: Path) -> None:
    case = cases["sd1", "rslora"]
    save_kohya_lora(case.folder, tmp_path / "a.safetensors", base="sd1", metadata={"ss_tag": "x"})
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        header = file.metadata()
    assert header["ss_network_module"] == "networks.lora"
    assert header["ss_network_dim"] == "2"
    assert float(header["ss_network_alpha"]) == pytest.approx(3 * 2**0.5, abs=1e-5)
    assert header["ss_base_model_version"] == "sd_v1"
    assert header["ss_v2"] == "False"
    assert header["ss_network_args"] == "{}"
    assert header["ss_tag"] == "x"
    data = (tmp_path / "a.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    assert header["sshs_model_hash"] == hashlib.sha256(data[start:]).hexdigest()
    assert start % 8 == 0
    assert not (tmp_path / "a.safetensors.partial").exists()


def test_the_header_of_other_bases(cases: dict[tuple[str, str], Case]) -> None:
    layers = read_lora(cases["sdxl", "dora"].folder)
    header = kohya_metadata(layers, base=cases["sdxl", "dora"].pipeline)
    assert header["ss_base_model_version"] == "sdxl_base_v1-0"
    assert header["ss_network_module"] == "lycoris.kohya"
    assert json.loads(header["ss_network_args"])["dora_wd"] == "True"
    patterns = kohya_metadata(read_lora(cases["sd1", "patterns"].folder), base="sd2")
    assert (patterns["ss_network_dim"], patterns["ss_network_alpha"]) == ("Dynamic", "3")
    assert (patterns["ss_v2"], patterns["ss_base_model_version"]) == ("True", "sd_v2")
    v_sd2 = SimpleNamespace(
        unet=SimpleNamespace(config=SimpleNamespace(use_linear_projection=True)),
        scheduler=SimpleNamespace(config=SimpleNamespace(prediction_type="v_prediction")),
    )
    assert kohya_metadata(layers, base=v_sd2)["ss_base_model_version"] == "sd_v2_v"


def test_the_same_source_makes_the_same_bytes_and_another_dtype_smaller_ones(
    plain: Case, tmp_path: Path
) -> None:
    files = [tmp_path / f"{n}.safetensors" for n in "abc"]
    for file, dtype in zip(files, (None, None, torch.float16), strict=True):
        save_kohya_lora(plain.folder, file, base="sd1", dtype=dtype)
    assert files[0].read_bytes() == files[1].read_bytes()
    full, half = load_file(files[0]), load_file(files[2])
    for key, value in full.items():
        assert half[key].dtype == (torch.float32 if key.endswith(".alpha") else torch.float16)
        torch.testing.assert_close(half[key].float(), value, rtol=1e-3, atol=1e-6)


def test_a_lora_fits_its_own_pipeline_in_every_format(case: Case, tmp_path: Path) -> None:
    fresh = case.fresh()
    kohya = load_file(save_kohya_lora(case.folder, tmp_path / "lora.safetensors", base=fresh))
    diffusers_named = read_tensors(case.folder)[0]
    check_lora_fits(diffusers_named, fresh)
    check_lora_fits(kohya, fresh)
    check_lora_fits(kohya, case.pipeline)  # which has an adapter already


def test_a_lora_of_another_architecture(cases: dict[tuple[str, str], Case], tmp_path: Path) -> None:
    sd1, sdxl = cases["sd1", "plain"], cases["sdxl", "plain"]
    of_sdxl, of_sd1 = read_tensors(sdxl.folder)[0], read_tensors(sd1.folder)[0]
    layer = "text_encoder.text_model.encoder.layers.1.mlp.fc1"
    with pytest.raises(ValueError, match=rf"must all be in the pipeline, got {layer} which StableDiffusionP"):
        check_lora_fits(of_sdxl, sd1.fresh())
    cross = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    message = rf"architecture, got {cross} for a weight of shape \(16, 16\) where it is \(16, 40\)"
    with pytest.raises(ValueError, match=message):
        check_lora_fits(of_sd1, sdxl.fresh())
    with pytest.raises(ValueError, match=message):
        save_kohya_lora(sd1.folder, tmp_path / "x.safetensors", base=sdxl.fresh())
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="sd1 must have no second text encoder, got layer text_encoder_2"):
        save_kohya_lora(sdxl.folder, tmp_path / "x.safetensors", base="sd1")
    kohya = kohya_lora(read_lora(sd1.folder), base="sd1")
    with pytest.raises(ValueError, match="must all be in the pipeline, got lora_te_text_model_encoder"):
        check_lora_fits(kohya, sdxl.fresh())
    with pytest.raises(ValueError, match="LoRA must hold layers, got none"):
        check_lora_fits({}, sd1.fresh())


def test_what_is_not_a_whole_file(plain: Case, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"LoRA must be an existing file, got .*nowhere"):
        read_lora(tmp_path / "nowhere")
    whole = (plain.folder / FILE_NAME).read_bytes()
    for name, data in {
        "cut": whole[: len(whole) // 2],
        "text": b"hello, this is text" * 9,
        "none": b"",
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"LoRA must be a whole safetensors file, got .*{name}"):
            read_lora(tmp_path / name)


LAYER = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def stored(file: Path, tensors: dict[str, Tensor], **metadata: object) -> Path:
    save_file(tensors, file, {"lora_adapter_metadata": json.dumps(metadata)} if metadata else None)
    return file


def pair(rank: int = 2, layer: str = LAYER) -> dict[str, Tensor]:
    shapes = {"down": (rank, 16), "up": (16, rank)}
    return {f"{layer}.lora.{part}.weight": torch.ones(shape) for part, shape in shapes.items()}


def test_without_metadata_the_scale_is_asked_for(tmp_path: Path) -> None:
    file = stored(tmp_path / "lora.safetensors", pair())
    with pytest.raises(ValueError, match=r"adapter metadata .*, got none for unet: .* give alpha=\.\.\."):
        read_lora(file)
    assert read_lora(file, alpha=3)[LAYER].scale == 1.5
    save_kohya_lora(file, tmp_path / "kohya.safetensors", base="sd1", alpha=3)
    alphas = [v for k, v in load_file(tmp_path / "kohya.safetensors").items() if k.endswith(".alpha")]
    assert alphas == [torch.tensor(3.0)]
    other = stored(tmp_path / "other.safetensors", pair(), **{"text_encoder.r": 2})
    with pytest.raises(ValueError, match="got none for unet"):
        read_lora(other)


R2 = {"unet.r": 2, "unet.lora_alpha": 2}


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        (pair(3), R2, f"layer {LAYER} must be of the header's rank 2, got 3"),
        ({}, R2, "LoRA must hold layers, got none"),
        (pair(), {"unet.r": 2}, "must have r and lora_alpha, got no lora_alpha of unet"),
        (
            pair(layer="vae.x"),
            R2,
            "must start with one of unet., text_enc.*, got 'vae.x'",
        ),
        (pair() | {"unet.x.hada_w1_a": torch.ones(1)}, R2, "LoRA key must end in .*, got 'unet.x.hada_w1_a'"),
        (pair() | {f"{LAYER}.alpha": torch.ones(())}, R2, f"must be in the header, got {LAYER}.alpha"),
        (
            {k: v for k, v in pair().items() if "up" in k},
            R2,
            f"layer {LAYER} must have down and up weights, got no down",
        ),
        (
            pair() | {f"{LAYER}.lora.down.weight": torch.ones(3, 16)},
            R2,
            rf"layer {LAYER} must have one rank, got \(3, 16\) down and \(16, 2\) up",
        ),
        (
            pair() | {f"{LAYER}.lora_magnitude_vector": torch.ones(3)},
            R2,
            rf"layer {LAYER} must have one magnitude an output, got \(3,\) for 16",
        ),
    ],
)
def test_layers_that_are_not_right(
    tmp_path: Path, tensors: dict[str, Tensor], metadata: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_lora(stored(tmp_path / "lora.safetensors", tensors, **metadata))


def test_other_errors(tmp_path: Path, plain: Case) -> None:
    save_file(pair(), tmp_path / "bad.safetensors", {"lora_adapter_metadata": "{"})
    with pytest.raises(ValueError, match="lora_adapter_metadata must be JSON, got"):
        read_lora(tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match="base must be a pipeline or one of sd1, sd2, sdxl, got 'sd3'"):
        kohya_lora(read_lora(plain.folder), base="sd3")
    with pytest.raises(
        ValueError, match=r"UNet layer must be a module of diffusers' .*, got 'encoder_hid_proj'"
    ):
        unet_name("encoder_hid_proj")
    uneven = SimpleNamespace(config=SimpleNamespace(layers_per_block=[1, 2]))
    with pytest.raises(ValueError, match=r"layers_per_block must be one number, got \[1, 2\]"):
        unet_blocks(uneven)
    with pytest.raises(ValueError, match=r"LoRA key must end in one of .*, got 'x.weight'"):
        split_key("x.weight")

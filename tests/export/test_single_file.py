"""Single files: every tensor under its original name, and back again by diffusers' own reader."""

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from onbrand.export.ldm_names import open_clip_name, vae_name
from onbrand.export.modelspec import architecture, modelspec, start_fingerprint
from onbrand.export.single_file import save_single_file, single_file_tensors
from onbrand.inference import (
    OffsetStableDiffusionControlNetPipeline,
    OffsetStableDiffusionPipeline,
    OffsetStableDiffusionXLPipeline,
    load_pipeline,
)
from onbrand.pca import StartDistribution
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

FAMILIES = ("sd1", "sd2", "sdxl")
UNET, VAE = "model.diffusion_model.", "first_stage_model."

# the published models
CROSS = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
REAL_UNETS: dict[str, dict[str, Any]] = {
    "sd1": {
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": CROSS[0],
        "up_block_types": CROSS[1],
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    },
    "sd2": {
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": CROSS[0],
        "up_block_types": CROSS[1],
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2, 10),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
REAL_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}


@pytest.fixture(scope="module")
def pipelines(tiny: ModuleType) -> dict[str, Any]:
    """Small ones, built as their families are."""
    sd2 = tiny.make_v_components()
    sd2["unet"] = tiny.make_unet(use_linear_projection=True)
    return {
        "sd1": OffsetStableDiffusionPipeline(**tiny.make_components()),
        "sd2": OffsetStableDiffusionPipeline(**sd2),
        "sdxl": OffsetStableDiffusionXLPipeline(**tiny.make_xl_components()),
    }


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    """What the published models' networks hold, without the values."""
    with torch.device("meta"):
        vae = AutoencoderKL(**REAL_VAE)
        unets = {name: UNet2DConditionModel(**form) for name, form in REAL_UNETS.items()}
        clip_l, clip_h = (CLIPTextModel(CLIPTextConfig(**form)) for form in (CLIP_L, CLIP_H))
        clip_g = CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G, projection_dim=1280))
    encoders = {"sd1": (clip_l, None), "sd2": (clip_h, None), "sdxl": (clip_l, clip_g)}
    scheduler = SimpleNamespace(config=SimpleNamespace(prediction_type="epsilon"))
    return {
        name: SimpleNamespace(
            unet=unets[name],
            vae=vae,
            text_encoder=encoders[name][0],
            text_encoder_2=encoders[name][1],
            scheduler=scheduler,
        )
        for name in FAMILIES
    }


def shapes(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, ...]]:
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: tensor)  # meta tensors have nothing to move
    return {name: tuple(tensor.shape) for name, tensor in single_file_tensors(pipeline).items()}


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_published_models_get_the_names_they_were_published_under(
    real: dict[str, Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = shapes(real[kind], monkeypatch)
    counts = {prefix: sum(name.startswith(prefix) for name in found) for prefix in (UNET, VAE)}
    assert counts == {UNET: {"sd1": 686, "sd2": 686, "sdxl": 1680}[kind], VAE: 248}
    linear = kind != "sd1"
    expected = {
        f"{UNET}time_embed.0.weight": (1280, 320),
        f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3),
        f"{UNET}input_blocks.3.0.op.weight": (320, 320, 3, 3),
        f"{UNET}input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
        f"{UNET}input_blocks.4.1.proj_in.weight": (640, 640) if linear else (640, 640, 1, 1),
        f"{UNET}middle_block.1.norm.weight": (1280,),
        f"{UNET}middle_block.2.out_layers.3.bias": (1280,),
        f"{UNET}output_blocks.5.2.conv.weight": (1280, 1280, 3, 3) if kind != "sdxl" else (640, 640, 3, 3),
        f"{UNET}out.2.weight": (4, 320, 3, 3),
        f"{VAE}encoder.down.0.downsample.conv.weight": (128, 128, 3, 3),
        f"{VAE}encoder.down.2.block.0.nin_shortcut.weight": (512, 256, 1, 1),
        f"{VAE}encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        f"{VAE}decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
        f"{VAE}decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        f"{VAE}decoder.norm_out.weight": (128,),
        f"{VAE}post_quant_conv.weight": (4, 4, 1, 1),
    }
    if kind == "sd1":
        text = "cond_stage_model.transformer.text_model."
        expected |= {
            f"{UNET}output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
            f"{text}embeddings.token_embedding.weight": (49408, 768),
            f"{text}encoder.layers.11.self_attn.q_proj.weight": (768, 768),
        }
        assert sum(name.startswith("cond_stage_model.") for name in found) == 196
    if kind == "sd2":
        expected |= {
            "cond_stage_model.model.token_embedding.weight": (49408, 1024),
            "cond_stage_model.model.positional_embedding": (77, 1024),
            "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight": (3072, 1024),
            # the layer that is counted but not looked at
            "cond_stage_model.model.transformer.resblocks.23.mlp.c_proj.bias": (1024,),
            "cond_stage_model.model.ln_final.weight": (1024,),
        }
    if kind == "sdxl":
        second = "conditioner.embedders.1.model."
        expected |= {
            f"{UNET}label_emb.0.2.bias": (1280,),
            f"{UNET}input_blocks.8.1.transformer_blocks.9.ff.net.0.proj.weight": (10240, 1280),
            "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias": (768,),
            f"{second}transformer.resblocks.31.attn.in_proj_bias": (3840,),
            f"{second}text_projection": (1280, 1280),
        }
    assert {name: found.get(name) for name in expected} == expected


@pytest.mark.parametrize("kind", FAMILIES)
def test_diffusers_reads_back_what_was_written(pipelines: dict[str, Any], kind: str, tmp_path: Path) -> None:
    pipeline, file = pipelines[kind], tmp_path / "model.safetensors"
    pipeline.save_pretrained(tmp_path / "folder")
    save_single_file(pipeline, file, metadata={"modelspec.title": "mugs"})
    plain = getattr(diffusers, type(pipeline).__name__.removeprefix("Offset"))
    loaded = plain.from_single_file(str(file), config=str(tmp_path / "folder"))
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if (own := getattr(pipeline, name, None)) is not None:
            state, back = own.state_dict(), getattr(loaded, name).state_dict()
            assert state.keys() == back.keys(), name
            assert all(torch.equal(state[key], back[key]) for key in state), name
    ours = load_pipeline(file, config=tmp_path / "folder", plain=True)
    assert type(ours) is type(pipeline)
    with safe_open(file, framework="pt") as stored:
        assert stored.metadata() == {"format": "pt", "modelspec.title": "mugs"}
    assert [path.name for path in tmp_path.glob("*.partial")] == []


def test_a_cast_is_of_all_floating_point_tensors(pipelines: dict[str, Any], tmp_path: Path) -> None:
    save_single_file(pipelines["sd1"], tmp_path / "half.safetensors", dtype=torch.float16)
    half, whole = load_file(tmp_path / "half.safetensors"), single_file_tensors(pipelines["sd1"])
    assert half.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(half[name], tensor.half() if tensor.is_floating_point() else tensor), name


def test_query_key_and_value_are_stacked_in_that_order(pipelines: dict[str, Any]) -> None:
    encoder = pipelines["sdxl"].text_encoder_2
    names = {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}
    parts = [names[f"encoder.layers.0.self_attn.{part}_proj.weight"] for part in "qkv"]
    tensors = single_file_tensors(pipelines["sdxl"])
    stacked = tensors["conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"]
    assert torch.equal(stacked, torch.cat(parts))
    projection = tensors["conditioner.embedders.1.model.text_projection"]
    assert np.array_equal(projection.numpy(), names["text_projection.weight"].numpy().T)


def test_an_xl_model_that_predicts_v_says_so(tiny: ModuleType) -> None:
    parts = tiny.make_xl_components()
    assert "v_pred" not in single_file_tensors(OffsetStableDiffusionXLPipeline(**parts))
    parts["scheduler"] = tiny.make_scheduler(prediction_type="v_prediction")
    tensors = single_file_tensors(OffsetStableDiffusionXLPipeline(**parts))
    assert "v_pred" in tensors
    assert "ztsnr" not in tensors
    parts["scheduler"] = tiny.make_scheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    assert {"v_pred", "ztsnr"} <= single_file_tensors(OffsetStableDiffusionXLPipeline(**parts)).keys()


def test_what_has_no_original_form_is_refused(tiny: ModuleType, pipelines: dict[str, Any]) -> None:
    parts = tiny.make_components()
    parts["controlnet"] = tiny.make_controlnet(parts["unet"])
    with pytest.raises(ValueError, match="must hold no ControlNet, got OffsetStableDiffusionControlNet"):
        single_file_tensors(OffsetStableDiffusionControlNetPipeline(**parts))
    with pytest.raises(ValueError, match=r"VAE layer must be .*, got 'encoder.mid_block.attentions.1.to_q'"):
        vae_name("encoder.mid_block.attentions.1.to_q", levels=3)
    with pytest.raises(ValueError, match=r"VAE layer must be .*, got 'encoder.layers.0'"):
        vae_name("encoder.layers.0", levels=3)
    with pytest.raises(ValueError, match=r"text encoder tensor must be .*, got 'text_model.adapter.weight'"):
        open_clip_name("text_model.adapter.weight")


def test_modelspec(tiny: ModuleType, pipelines: dict[str, Any]) -> None:
    kinds = {name: architecture(pipeline) for name, pipeline in pipelines.items()}
    assert kinds == {
        "sd1": "stable-diffusion-v1",
        "sd2": "stable-diffusion-v2-768-v",
        "sdxl": "stable-diffusion-xl-v1-base",
    }
    found = modelspec(pipelines["sd2"], title="mugs", date="2026-11-21", lora=True)
    assert all(isinstance(value, str) for value in found.values())
    assert found["modelspec.sai_model_spec"] == "1.0.0"
    assert found["modelspec.architecture"] == "stable-diffusion-v2-768-v/lora"
    assert found["modelspec.resolution"] == f"{tiny.PIXELS}x{tiny.PIXELS}"
    assert found["modelspec.prediction_type"] == "v"
    assert found["onbrand.start"] == "none"


def test_the_fingerprint_is_of_the_starts_values(tiny: ModuleType) -> None:
    def pipeline(seed: int) -> Any:
        latents = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
        start = StartDistribution.fit(latents, torch.zeros(8).long(), class_names=["mug"])
        return SimpleNamespace(start_distribution=start)

    assert start_fingerprint(pipeline(0)) == start_fingerprint(pipeline(0))
    assert start_fingerprint(pipeline(0)) != start_fingerprint(pipeline(1))

"""Tiny models of Stable Diffusion's form with random weights: 32 x 32 pixels, 4 x 8 x 8 latents."""

import string
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

TOKENS = 16
TEXT_WIDTH = 16
XL_WIDTHS = (16, 24)
XL_POOLED = 20
XL_TIME_IDS = 6  # original size, crop, target size
XL_TIME_WIDTH = 8
LATENT_SHAPE = (4, 8, 8)
PIXELS = 32


def make_unet(*, seed: int = 0, **config: object) -> UNet2DConditionModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        form = {
            "sample_size": LATENT_SHAPE[1],
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "norm_num_groups": 4,
            "attention_head_dim": 4,
            "cross_attention_dim": TEXT_WIDTH,
        }
        return UNet2DConditionModel(**form | config).eval()


def make_vae(*, seed: int = 0, **config: object) -> AutoencoderKL:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        form = {
            "down_block_types": ["DownEncoderBlock2D"] * 3,
            "up_block_types": ["UpDecoderBlock2D"] * 3,
            "block_out_channels": (4, 4, 8),
            "norm_num_groups": 4,
            "latent_channels": 4,
            "sample_size": PIXELS,
        }
        return AutoencoderKL(**form | config).eval()


def make_tokenizer() -> CLIPTokenizer:
    """Spells: a token a character, so any plain text is in the vocabulary."""
    characters = string.ascii_lowercase + string.digits + string.punctuation
    words = ["<|startoftext|>", "<|endoftext|>", *characters, *(f"{c}</w>" for c in characters)]
    vocab = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=[], pad_token=words[1], model_max_length=TOKENS)


def make_clip_config(**config: int) -> CLIPTextConfig:
    form = {
        "vocab_size": len(make_tokenizer()),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": TOKENS,
        "projection_dim": TEXT_WIDTH,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    return CLIPTextConfig(**form | config)


def make_text_encoder(*, seed: int = 0) -> CLIPTextModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPTextModel(make_clip_config()).eval()


def make_scheduler(**config: object) -> DDIMScheduler:
    """Stable Diffusion's betas and spacing."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    form = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}
    return DDIMScheduler(**betas | form | config)


def make_components() -> dict:
    """What a StableDiffusionPipeline is made of, as keyword arguments."""
    return {
        "vae": make_vae(),
        "text_encoder": make_text_encoder(),
        "tokenizer": make_tokenizer(),
        "unet": make_unet(),
        "scheduler": make_scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def save_base(folder: Path) -> Path:
    """Writes a plain diffusers folder, as a base to fine-tune, and returns it."""
    StableDiffusionPipeline(**make_components()).save_pretrained(folder)
    return folder


def make_v_components() -> dict:
    """As `make_components`, of Stable Diffusion 2's form: the UNet predicts v."""
    return make_components() | {"scheduler": make_scheduler(prediction_type="v_prediction")}


def save_v_base(folder: Path) -> Path:
    """Writes a plain diffusers folder whose UNet predicts v, and returns it."""
    StableDiffusionPipeline(**make_v_components()).save_pretrained(folder)
    return folder


def make_xl_unet(*, seed: int = 0) -> UNet2DConditionModel:
    return make_unet(
        seed=seed,
        use_linear_projection=True,
        cross_attention_dim=sum(XL_WIDTHS),
        addition_embed_type="text_time",
        addition_time_embed_dim=XL_TIME_WIDTH,
        projection_class_embeddings_input_dim=XL_TIME_IDS * XL_TIME_WIDTH + XL_POOLED,
    )


def make_xl_text_encoder(number: int, *, seed: int = 0) -> CLIPTextModel | CLIPTextModelWithProjection:
    """SDXL's first or second encoder (number 1, 2), with two layers: what is read is the last but one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + number)
        config = make_clip_config(
            hidden_size=XL_WIDTHS[number - 1], num_hidden_layers=2, projection_dim=XL_POOLED
        )
        return (CLIPTextModel if number == 1 else CLIPTextModelWithProjection)(config).eval()


def make_xl_components() -> dict:
    """What a StableDiffusionXLPipeline is made of, as keyword arguments."""
    return {
        "vae": make_vae(),
        "text_encoder": make_xl_text_encoder(1),
        "text_encoder_2": make_xl_text_encoder(2),
        "tokenizer": make_tokenizer(),
        "tokenizer_2": make_tokenizer(),
        "unet": make_xl_unet(),
        "scheduler": make_scheduler(),
        "add_watermarker": False,
    }


def save_xl_base(folder: Path) -> Path:
    """Writes a plain diffusers folder of SDXL's form, and returns it."""
    StableDiffusionXLPipeline(**make_xl_components()).save_pretrained(folder)
    return folder


def make_controlnet(unet: UNet2DConditionModel, *, seed: int = 0, effect: float = 0.0) -> ControlNetModel:
    """A ControlNet for 32 x 32 conditions that starts as the UNet does.

    effect: std of its outgoing convolutions; 0 as in every new ControlNet, which then changes nothing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # n widths bring the condition down by 2 ** (n - 1): three for the tiny VAE's 4
        controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8, 8))
        for outgoing in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
            torch.nn.init.normal_(outgoing.weight, std=effect)
        torch.nn.init.normal_(controlnet.controlnet_cond_embedding.conv_out.weight, std=effect)
        return controlnet.eval()

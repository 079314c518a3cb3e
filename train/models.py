"""The networks of a run: what is loaded, what is trained, what is frozen."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.training_utils import cast_training_params
from peft import LoraConfig

from ..configs.schema import ModelConfig
from ..inference.pipeline import load_pipeline

TINY_BASE = Path(__file__).parents[1] / "assets" / "tiny-base"


def resolve_base(base: str) -> str:
    """`tiny-base` as the packaged folder; any other base as it is."""
    return str(TINY_BASE) if base == "tiny-base" else base


def load_base(base: str) -> StableDiffusionPipeline:
    """The base as a pipeline in float32. Raises ValueError on a base that is not one or lacks a VAE."""
    return load_pipeline(resolve_base(base), torch_dtype=torch.float32, plain=True)


def check_method(pipeline: StableDiffusionPipeline, config: ModelConfig) -> None:
    """Raises ValueError on LoRA targets that match no module of the UNet."""
    if config.method == "lora":
        modules = [name for name, _ in pipeline.unet.named_modules()]
        lost = [
            target for target in config.lora.targets if not any(name.endswith(target) for name in modules)
        ]
        if lost:
            raise ValueError(
                f"model.lora.targets must match modules of the UNet, got {lost} which match none"
            )


def prepare_unet(pipeline: StableDiffusionPipeline, config: ModelConfig) -> list[torch.nn.Parameter]:
    """Freezes all but what the config trains, adds adapters if asked, returns the trained parameters."""
    for module in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        module.requires_grad_(False)
    unet = pipeline.unet.train()
    if config.method == "full":
        unet.requires_grad_(True)
    else:
        lora = config.lora
        unet.add_adapter(
            LoraConfig(
                r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.targets, init_lora_weights="gaussian"
            )
        )
        cast_training_params(unet)
    return [parameter for parameter in unet.parameters() if parameter.requires_grad]


def training_schedule(pipeline: StableDiffusionPipeline) -> tuple[torch.Tensor, str]:
    """The base's alphas_cumprod (T,) in float32 and its prediction_type."""
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    return scheduler.alphas_cumprod.float(), scheduler.config.prediction_type


def tokenize(pipeline: StableDiffusionPipeline, captions: list[str]) -> torch.Tensor:
    """Token ids (N, L), padded and cut to the tokenizer's length."""
    tokenizer = pipeline.tokenizer
    return tokenizer(
        captions,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids

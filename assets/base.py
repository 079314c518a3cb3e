"""The tiny base's text encoder and UNet, trained together on the studio's wild look."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .loop import optimise
from .tokenizer import CONTEXT_LENGTH
from .vae import to_pixels

STEPS, BATCH, LEARNING_RATE = 11_000, 32, 1e-3
CAPTION_DROPOUT = 0.1
TEXT_WIDTH = 64

# With d = 1024 this end of the schedule gives d * alphas_cumprod[-1] = 76, as SD has with d = 16384: the last
# training latents give away as much of the picture (METHODS 1, "Laboratory scale").
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.0049,
    "beta_schedule": "scaled_linear",
}


def tiny_scheduler() -> DDIMScheduler:
    """DDIM in the form SD checkpoints ship: leading spacing, offset 1."""
    return DDIMScheduler(
        **SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading"
    )


def tiny_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained two-layer CLIP text encoder for the tiny vocabulary."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tiny_unet() -> UNet2DConditionModel:
    """An untrained UNet with 2.9 M parameters and cross-attention at 8x8 and 4x4."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(48, 64, 96),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
        norm_num_groups=16,
    )


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: np.ndarray, *, batch: int = 64) -> torch.Tensor:
    """Scaled latents (posterior mean) of (N, 64, 64, 3) uint8 pictures, (N, 4, 16, 16) float32."""
    means = [
        vae.encode(to_pixels(np.asarray(pictures[i : i + batch]))).latent_dist.mean
        for i in range(0, len(pictures), batch)
    ]
    return (torch.cat(means) * vae.config.scaling_factor).contiguous()


def train_base(
    latents: torch.Tensor, captions: list[str], tokenizer: CLIPTokenizer, *, work: Path, steps: int = STEPS
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """The averaged (EMA) UNet and text encoder after plain epsilon training on scaled latents."""
    torch.manual_seed(0)
    models = torch.nn.ModuleDict(
        {
            "unet": tiny_unet().to(memory_format=torch.channels_last),
            "text_encoder": tiny_text_encoder(tokenizer),
        }
    )
    unet, text_encoder = models["unet"], models["text_encoder"]
    average = EMAModel(models.parameters(), decay=0.9995, use_ema_warmup=True, power=0.75)
    noise_scheduler = DDPMScheduler(**SCHEDULE)
    input_ids = _tokens(tokenizer, captions)
    (no_caption,) = _tokens(tokenizer, [""])

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        rows = torch.randint(len(latents), (BATCH,), generator=generator)
        x_0 = latents[rows]
        noise = torch.randn(x_0.shape, generator=generator)
        timesteps = torch.randint(1000, (BATCH,), generator=generator)
        noisy_latents = noise_scheduler.add_noise(x_0, noise, timesteps)
        dropped = torch.rand(BATCH, generator=generator) < CAPTION_DROPOUT
        ids = torch.where(dropped[:, None], no_caption, input_ids[rows])
        encoder_hidden_states = text_encoder(ids)[0]
        return F.mse_loss(unet(noisy_latents, timesteps, encoder_hidden_states).sample, noise)

    optimise(
        models,
        loss_of,
        name="base",
        work=work,
        steps=steps,
        learning_rate=LEARNING_RATE,
        after_step=lambda: average.step(models.parameters()),
        state=(average,),
    )
    average.copy_to(models.parameters())
    return unet.eval(), text_encoder.eval()


def _tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    return tokenizer(
        captions, padding="max_length", max_length=CONTEXT_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids

"""What diffusers' train_text_to_image.py does in a step, timed by part, to hold our loop against.

Its pictures are decoded and its captions tokenized beforehand, which favours it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline
from diffusers import UNet2DConditionModel as UNet
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from onbrand.configs.schema import Config
from onbrand.inference.text import tokenize
from onbrand.train.launch import frozen_dtype
from onbrand.train.models import TINY_BASE, checkpoint_gradients, load_base, prepare_networks
from onbrand.train.part import transform_of
from onbrand.train.prepare import split_catalogue
from torch.utils.data import DataLoader, Dataset, RandomSampler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SD15 = "sd15-architecture"
ENCODING = ("VAE encode", "text encode")  # what caching takes away
NETWORK = ("UNet forward", "backward", "clip, AdamW, EMA")


def build_pipeline(config: Config, device: torch.device) -> Any:
    """The base in float32; of `sd15-architecture` with Stable Diffusion 1.5's sizes and random weights."""
    if config.model.base != SD15:
        return load_base(config.model)
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    tokenizer = CLIPTokenizer.from_pretrained(TINY_BASE / "tokenizer", model_max_length=77)
    torch.manual_seed(0)
    with device:
        unet = UNet(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512,
        )  # fmt: skip
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
            )
        )
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **schedule)
    return StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


class Stopwatch:
    """Seconds by part of a step on the device's own clock; waits for the device only in `seconds`."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.marks: list[tuple[str, Any]] = []

    def done(self, part: str) -> None:
        """What ran since the last mark was `part`."""
        moment = torch.cuda.Event(enable_timing=True) if self.on_gpu else time.perf_counter()
        if self.on_gpu:
            moment.record()
        self.marks.append((part, moment))

    def seconds(self) -> dict[str, float]:
        if self.on_gpu:
            torch.cuda.synchronize()
        sums: dict[str, float] = defaultdict(float)
        for (_, before), (part, after) in zip(self.marks, self.marks[1:], strict=False):
            sums[part] += before.elapsed_time(after) / 1000 if self.on_gpu else after - before
        return sums


class Pixels(Dataset):
    """8-bit pictures (N, 3, H, W) in memory, each scaled to [-1, 1] when asked for, and their tokens."""

    def __init__(self, pixels: torch.Tensor, input_ids: torch.Tensor) -> None:
        self.pixels, self.input_ids = pixels, input_ids

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pixels[row].float() / 127.5 - 1, "input_ids": self.input_ids[row]}


class PlainLoop:
    """The steps of train_text_to_image.py, with an adapter as in train_text_to_image_lora.py if asked for.

    fused: AdamW in one kernel, as ours, instead of its default.
    """

    def __init__(self, config: Config, *, fused: bool = False) -> None:
        options = config.train
        self.accelerator = Accelerator(mixed_precision=options.mixed_precision)
        self.max_grad_norm, self.dtype = options.max_grad_norm, frozen_dtype(self.accelerator)
        device = self.accelerator.device
        pipeline = build_pipeline(config, device)
        unet = prepare_networks(pipeline, config.model, weight_dtype=self.dtype).pipeline.unet
        self.vae, self.text_encoder = (
            pipeline.vae.to(device, self.dtype),
            pipeline.text_encoder.to(device, self.dtype),
        )
        self.noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        if options.gradient_checkpointing:
            checkpoint_gradients([unet])
        self.weights = [p for p in unet.to(device).parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(self.weights, lr=options.learning_rate, fused=fused or None)
        schedule = get_scheduler("constant", optimizer)
        catalogue, _ = split_catalogue(config)
        transform = transform_of(config.data)
        pictures = [transform(catalogue.image(row)) for row in range(len(catalogue))]
        pixels = ((torch.stack(pictures) + 1) * 127.5).round().to(torch.uint8)
        data = Pixels(pixels, tokenize(pipeline, catalogue.captions)[:, 0])
        loader = DataLoader(
            data,
            batch_size=options.batch_size,
            sampler=RandomSampler(data, num_samples=options.steps * options.batch_size),
            num_workers=options.workers,
        )
        self.unet, self.optimizer, loader, self.schedule = self.accelerator.prepare(
            unet, optimizer, loader, schedule
        )
        self.average = EMAModel(self.weights, decay=options.ema_decay) if options.ema_decay else None
        self.batches: Iterator[dict[str, torch.Tensor]] = iter(loader)

    def block(self, steps: int) -> dict[str, float]:
        """Takes that many steps; seconds by part."""
        watch = Stopwatch(self.accelerator.device)
        watch.done("before")
        for _ in range(steps):
            self.step(watch)
        return watch.seconds()

    def step(self, watch: Stopwatch) -> None:
        """One step, in train_text_to_image.py's order."""
        batch = next(self.batches)
        watch.done("data")
        accelerator, scheduler = self.accelerator, self.noise_scheduler
        with accelerator.accumulate(self.unet):
            with torch.no_grad():
                latents = self.vae.encode(batch["pixel_values"].to(self.dtype)).latent_dist.sample()
                latents = latents * self.vae.config.scaling_factor
                watch.done("VAE encode")
                encoder_hidden_states = self.text_encoder(batch["input_ids"], return_dict=False)[0]
                watch.done("text encode")
            noise = torch.randn_like(latents)
            timesteps = torch.randint(
                scheduler.config.num_train_timesteps, (len(latents),), device=latents.device
            )
            noisy_latents = scheduler.add_noise(latents.float(), noise.float(), timesteps).to(self.dtype)
            target = noise
            if scheduler.config.prediction_type == "v_prediction":
                target = scheduler.get_velocity(latents, noise, timesteps)
            watch.done("noise")
            model_pred = self.unet(noisy_latents, timesteps, encoder_hidden_states, return_dict=False)[0]
            loss = F.mse_loss(model_pred.float(), target.float(), reduction="mean")
            watch.done("UNet forward")
            accelerator.gather(loss.repeat(len(latents))).mean().item()
            accelerator.backward(loss)
            watch.done("backward")
            accelerator.clip_grad_norm_(self.weights, self.max_grad_norm)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
        if self.average:
            self.average.step(self.weights)
        watch.done("clip, AdamW, EMA")

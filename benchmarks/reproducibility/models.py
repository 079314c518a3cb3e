"""The small diffusion models of the studies: what each is, how it is trained and how it draws."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DiTTransformer2DModel, UNet2DModel
from diffusers.configuration_utils import FrozenDict
from diffusers.models.unets.unet_2d import UNet2DOutput
from onbrand.assets.loop import optimise
from onbrand.data.studio import CLASSES
from onbrand.pca import Sampler, build_scheduler
from pictures import LARGEST, SHAPE, class_ids, latents
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

BATCH = 32
SCHEDULES = {
    "scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    "linear": {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"},
}
DDIM = Sampler("DDIMScheduler", 25)


@dataclass(frozen=True)
class Model:
    """One model of the studies; the first `count` pictures of the set `pictures` are its training set."""

    seed: int = 0
    pictures: str = "a"
    count: int = LARGEST
    look: str = "wild"
    kind: str = "unet"
    widths: tuple[int, ...] = (32, 48)
    prediction: str = "epsilon"
    schedule: str = "scaled_linear"
    conditional: bool = False
    steps: int = 1500

    @property
    def name(self) -> str:
        told = [self.look, self.pictures, self.count, self.kind, "x".join(map(str, self.widths))]
        told += [self.prediction, self.schedule, "classes" if self.conditional else "all", self.steps]
        return "-".join(str(part).replace(" ", "_") for part in [*told, f"seed{self.seed}"])

    def scheduler(self) -> DDIMScheduler:
        return DDIMScheduler(
            **SCHEDULES[self.schedule],
            prediction_type=self.prediction,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            timestep_spacing="leading",
        )

    def training_latents(self, work: Path) -> Tensor:
        return latents(work, self.pictures, self.count, self.look)


class Patched(nn.Module):
    """A UNet at 4 x 4 x 16, whose channels are the 2 x 2 patches of 8 x 8 x 4 latents."""

    def __init__(self, widths: tuple[int, ...], *, conditional: bool) -> None:
        super().__init__()
        channels, height, _ = SHAPE
        self.unet = UNet2DModel(
            sample_size=height // 2,
            in_channels=4 * channels,
            out_channels=4 * channels,
            block_out_channels=widths,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=8,
            num_class_embeds=len(CLASSES) if conditional else None,
        )

    def forward(self, x: Tensor, timesteps: Any, labels: Tensor | None) -> Tensor:
        return F.pixel_shuffle(self.unet(F.pixel_unshuffle(x, 2), timesteps, labels).sample, 2)


class Transformer(nn.Module):
    """A DiT on the same patches: one token each."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        channels, height, _ = SHAPE
        heads, layers = widths
        self.dit = DiTTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=16,
            in_channels=channels,
            out_channels=channels,
            num_layers=layers,
            sample_size=height,
            patch_size=2,
            num_embeds_ada_norm=1,
        )

    def forward(self, x: Tensor, timesteps: Any, labels: Tensor | None) -> Tensor:
        timesteps = torch.as_tensor(timesteps).expand(len(x))
        return self.dit(x, timesteps, class_labels=torch.zeros(len(x), dtype=torch.long)).sample


class Denoiser(nn.Module):
    """In the form of the network of diffusers' unconditional pipelines; `labels` if it is told classes."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(model.seed)
            if model.kind == "unet":
                self.inner: nn.Module = Patched(model.widths, conditional=model.conditional)
            else:
                self.inner = Transformer(model.widths)
        self.eval()  # the DiT would drop labels otherwise; there is nothing else the mode changes
        self.labels: Tensor | None = None
        channels, height, _ = SHAPE
        self.config = FrozenDict(sample_size=height, in_channels=channels, out_channels=channels)
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def forward(self, sample: Tensor, timestep: Any, *, return_dict: bool = True) -> Any:
        output = self.inner(sample, timestep, self.labels)
        return UNet2DOutput(sample=output) if return_dict else (output,)


def trained(model: Model, work: Path) -> Denoiser:
    """The trained network; trained, or its training finished, if it is not there."""
    file = work / "models" / f"{model.name}.safetensors"
    network = Denoiser(model)
    if not file.exists():
        train(network, model, model.training_latents(work), work=work)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(network.state_dict(), file)
    network.load_state_dict(load_file(file))
    return network.requires_grad_(False)


def train(
    network: Denoiser,
    model: Model,
    x_0s: Tensor,
    *,
    work: Path,
    name: str | None = None,
    steps: int | None = None,
    learning_rate: float = 2e-3,
) -> None:
    """Plain training; other seeds see other pictures, noises and timesteps in another order."""
    scheduler, ids = model.scheduler(), class_ids(len(x_0s))

    def loss_of(generator: torch.Generator) -> Tensor:
        generator.manual_seed(generator.initial_seed() + 1_000_003 * (1 + model.seed))
        rows = torch.randint(len(x_0s), (BATCH,), generator=generator)
        noise = torch.randn(BATCH, *SHAPE, generator=generator)
        timesteps = torch.randint(1000, (BATCH,), generator=generator)
        x_0 = x_0s[rows]
        noisy = scheduler.add_noise(x_0, noise, timesteps)
        target = noise if model.prediction == "epsilon" else scheduler.get_velocity(x_0, noise, timesteps)
        network.labels = ids[rows] if model.conditional else None
        return F.mse_loss(network(noisy, timesteps).sample, target)

    optimise(
        network,
        loss_of,
        name=name or model.name,
        work=work / "training",
        steps=steps or model.steps,
        learning_rate=learning_rate,
    )
    network.labels = None


@torch.no_grad()
def sample(
    network: nn.Module,
    scheduler: Any,
    eps: Tensor,
    *,
    sampler: Sampler = DDIM,
    labels: Tensor | None = None,
    batch: int = 64,
) -> Tensor:
    """x_0 (n, 4, 8, 8) of initial noise eps by a deterministic sampler; labels: (n,) classes."""
    found = []
    for first in range(0, len(eps), batch):
        rows = slice(first, first + batch)
        steps = build_scheduler(scheduler, sampler)
        steps.set_timesteps(sampler.steps)
        if hasattr(network, "labels"):
            network.labels = None if labels is None else labels[rows]
        x = eps[rows] * steps.init_noise_sigma
        for timestep in steps.timesteps:
            seen = steps.scale_model_input(x, timestep)
            x = steps.step(network(seen, timestep, return_dict=False)[0], timestep, x).prev_sample
        found.append(x)
    return torch.cat(found)


def noises(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))

"""Two specialists to aggregate. `python benchmarks/aggregation_models.py WORK [--only shapes]`

Trains, from the tiny base, a ControlNet and the UNet together on pictures of one to six products. `shapes`
is shown every product's box in a code of its kind, and reads the kinds; the colours it has to guess.
`colours` is shown a spot of colour near every product's centre, and reads the colours; kinds and extents it
has to guess. They become WORK/shapes and WORK/colours, pipelines that `load_pipeline` reads. Stopped, the
command goes on from its newest checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from diffusers import (
    ControlNetModel,
    DDPMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
)
from onbrand.assets.base import CAPTION_DROPOUT, SCHEDULE, encode
from onbrand.assets.crowded_scenes import SIDES, colours_picture, crowded_scenes, kinds_picture
from onbrand.assets.loop import optimise
from onbrand.assets.studio_scenes import Scene
from onbrand.evaluation.detection import Box
from onbrand.train.models import TINY_BASE
from PIL import Image
from safetensors.torch import load_file, save_file

SEED, SCENES, BATCH, LEARNING_RATE = 61, 16_000, 16, 5e-4
STEPS = {"shapes": 2_400, "colours": 2_000}
# the other's colours are wanted in the first steps only, where the loss is small beside that of the last ones
FROM_TIMESTEP = {"shapes": 0, "colours": 300}
Instances = list[tuple[str, str, Box]]  # kind, colour, box in fractions


def instances_of(scene: Scene) -> Instances:
    """What can be seen in a scene: kind, colour and box of each product."""
    return [(product.kind, product.colour, box) for product, box in scene.boxes()]


def prompt_of(model: str, instances: Instances) -> str:
    """The kinds without colours for `shapes`, the colours without kinds for `colours`."""
    if model == "shapes":
        return " and ".join(f"a {kind}" for kind, _, _ in instances)
    return " and ".join(
        f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} product" for _, colour, _ in instances
    )


def condition_of(model: str, instances: Instances, *, seed: Sequence[int]) -> Image.Image:
    """The picture that a model is shown; seed: of the jitter of the spots."""
    if model == "shapes":
        return kinds_picture([(kind, box) for kind, _, box in instances])
    return colours_picture([(colour, box) for _, colour, box in instances], np.random.default_rng(seed))


def training_scenes(work: Path, vae: Any, count: int) -> tuple[torch.Tensor, list[Instances]]:
    """Scaled latents (count, 4, 16, 16) of one to six products each, and what is in them; kept in work."""
    latents, told = work / f"scenes_{count}.safetensors", work / f"scenes_{count}.json"
    if not told.exists():
        scenes = crowded_scenes(range(count), (i % len(SIDES) + 1 for i in range(count)), seed=SEED)
        save_file({"latents": encode(vae, np.stack([np.asarray(s.picture) for s in scenes]))}, latents)
        told.write_text(json.dumps([instances_of(scene) for scene in scenes]))
    return load_file(latents)["latents"], json.loads(told.read_text())


def train(
    name: str, base: Any, latents: torch.Tensor, scenes: list[Instances], work: Path, steps: int
) -> None:
    """Trains the specialist and writes it to work/name."""
    torch.manual_seed(0)
    unet = base.unet.float()
    # the tiny autoencoder makes 4 x 4 pixels one latent: two halvings of the condition picture
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 64))
    models = torch.nn.ModuleDict({"unet": unet, "controlnet": controlnet}).train()
    noise_scheduler = DDPMScheduler(**SCHEDULE)
    pictures = np.stack([np.asarray(condition_of(name, one, seed=(SEED, i))) for i, one in enumerate(scenes)])
    captions = [prompt_of(name, one) for one in scenes]

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        rows = torch.randint(len(latents), (BATCH,), generator=generator)
        noise = torch.randn(latents[rows].shape, generator=generator)
        timesteps = torch.randint(FROM_TIMESTEP[name], 1000, (BATCH,), generator=generator)
        noisy_latents = noise_scheduler.add_noise(latents[rows], noise, timesteps)
        dropped = (torch.rand(BATCH, generator=generator) < CAPTION_DROPOUT).tolist()
        texts = ["" if drop else captions[row] for row, drop in zip(rows.tolist(), dropped, strict=True)]
        with torch.no_grad():
            encoder_hidden_states, _ = base.encode_prompt(texts, "cpu", 1, False)
        condition = torch.from_numpy(pictures[rows.numpy()]).permute(0, 3, 1, 2).float() / 255
        down, mid = controlnet(
            noisy_latents, timesteps, encoder_hidden_states, controlnet_cond=condition, return_dict=False
        )
        model_pred = unet(
            noisy_latents, timesteps, encoder_hidden_states,
            down_block_additional_residuals=down, mid_block_additional_residual=mid,
        ).sample  # fmt: skip
        return F.mse_loss(model_pred, noise)

    optimise(
        models, loss_of, name=f"{name}_training", work=work, steps=steps, learning_rate=LEARNING_RATE,
        checkpoint_every=200,
    )  # fmt: skip
    pipeline = StableDiffusionControlNetPipeline(
        **{part: value for part, value in base.components.items() if part != "image_encoder"},
        controlnet=controlnet.eval(), requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(work / name)


def main(
    work: Path,
    steps: Annotated[int | None, typer.Option(help="Instead of each model's own")] = None,
    scenes: Annotated[int, typer.Option(help="Pictures to train on")] = SCENES,
    only: Annotated[str | None, typer.Option(help="shapes or colours")] = None,
) -> None:
    if only not in (None, *STEPS):
        raise typer.BadParameter(f"only must be one of {', '.join(STEPS)}, got {only}")
    work.mkdir(parents=True, exist_ok=True)
    for name in STEPS if only is None else (only,):
        if (work / name).exists():
            continue
        base = StableDiffusionPipeline.from_pretrained(TINY_BASE)
        latents, told = training_scenes(work, base.vae.float(), scenes)
        train(name, base, latents, told, work, STEPS[name] if steps is None else steps)


if __name__ == "__main__":
    typer.run(main)

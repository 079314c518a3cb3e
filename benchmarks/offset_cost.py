"""What the offset adds to a training step: `python benchmarks/offset_cost.py [K ...]`

Times the added code alone (projection, offset noise) and a whole step (forward, backward, AdamW) of the tiny
base at batch 32 in one run, medians over many repetitions, and prints their ratio for each K.
"""

from __future__ import annotations

import sys

import torch
from onbrand.benchmarks.timing import median_ms
from onbrand.configs.schema import ModelConfig
from onbrand.data.studio import CLASSES
from onbrand.inference.text import tokenize
from onbrand.pca import StartDistribution, offset_target
from onbrand.train.models import load_base, prepare_networks, training_schedule
from onbrand.train.step import training_loss
from rich.console import Console
from rich.table import Table

BATCH, OFFSET_FROM = 32, 941


def main(components: list[int]) -> None:
    options = ModelConfig()
    networks = prepare_networks(load_base(options), options)
    denoiser = networks.denoiser
    optimizer = torch.optim.AdamW((p for _, p in denoiser.trained()), lr=1e-5, fused=True)
    alphas_cumprod, prediction_type = training_schedule(networks.pipeline)
    generator = torch.Generator().manual_seed(0)
    catalogue = torch.randn(400, 4, 16, 16, generator=generator)
    class_ids = torch.arange(400) % len(CLASSES)
    batch = {
        "latents": catalogue[:BATCH],
        "noise": torch.randn(BATCH, 4, 16, 16, generator=generator),
        "timesteps": torch.randint(1000, (BATCH,), generator=generator),
        "class_ids": class_ids[:BATCH],
        "dropped": torch.zeros(BATCH, dtype=torch.bool),
        "input_ids": tokenize(networks.pipeline, ["a red striped mug"] * BATCH),
    }
    table = Table(
        title=f"Offset in a training step of the tiny base, batch {BATCH}, {torch.get_num_threads()} threads"
    )
    for name in ("K", "plain noising, ms", "offset noising, ms", "whole step, ms", "added / step"):
        table.add_column(name, justify="right")
    for k in components:
        start = StartDistribution.fit(
            catalogue, class_ids, class_names=CLASSES, components=k, offset_from=OFFSET_FROM
        )

        def plain() -> object:
            a = alphas_cumprod[batch["timesteps"]].view(-1, 1, 1, 1)
            return a**0.5 * batch["latents"] + (1 - a) ** 0.5 * batch["noise"]

        def offset(start: StartDistribution = start) -> object:
            x_start = start.project(batch["latents"], batch["class_ids"])
            return offset_target(
                batch["latents"], x_start, batch["noise"], batch["timesteps"],
                alphas_cumprod=alphas_cumprod, offset_from=OFFSET_FROM, prediction_type=prediction_type,
            )  # fmt: skip

        def step(start: StartDistribution = start) -> None:
            loss, _ = training_loss(
                batch, denoiser=denoiser, start_distribution=start, alphas_cumprod=alphas_cumprod,
                offset_from=OFFSET_FROM, prediction_type=prediction_type,
            )  # fmt: skip
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        simple, added, whole = (
            median_ms(plain, repeats=300), median_ms(offset, repeats=300), median_ms(step, repeats=20)
        )  # fmt: skip
        table.add_row(
            str(k), f"{simple:.3f}", f"{added:.3f}", f"{whole:.1f}", f"{(added - simple) / whole:.3%}"
        )
    Console().print(table)


if __name__ == "__main__":
    main([int(k) for k in sys.argv[1:]] or [0, 3, 8])

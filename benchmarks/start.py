"""What an offset start adds to a call of the pipeline: `python benchmarks/start.py [STEPS]`

Times the added code alone (noise, the class's mean, the start latents) and a whole call of the tiny base with
guidance, DDIM and as many steps (20) in one run, medians over many repetitions, and prints their ratio. The
call ends at the latents: decoding would make the ratio smaller. At Stable Diffusion's size, 4 x 64 x 64, the
added code is timed alone.
"""

from __future__ import annotations

import sys

import torch
from onbrand.benchmarks.timing import median_ms
from onbrand.data.studio import CLASSES
from onbrand.inference import OffsetStableDiffusionPipeline
from onbrand.inference.choice import StartChoice
from onbrand.pca import StartDistribution
from onbrand.train.models import TINY_BASE
from rich.console import Console
from rich.table import Table

PROMPT, CHOICE = "a red striped mug", StartChoice(class_name=CLASSES[0])
BATCHES, STABLE_DIFFUSION = (1, 8), 64


def made_up_start(size: int) -> StartDistribution:
    """Class means of noise in the place of a catalogue, 4 x size x size."""
    latents = torch.randn(64, 4, size, size, generator=torch.Generator().manual_seed(0))
    return StartDistribution.fit(
        latents, torch.arange(64) % len(CLASSES), class_names=CLASSES, components=0, offset_from=901
    )


def main(steps: int) -> None:
    pipe = OffsetStableDiffusionPipeline.from_pretrained(TINY_BASE)
    pipe.set_progress_bar_config(disable=True)
    tiny_size = pipe.unet.config.sample_size
    table = Table(
        title=f"Start of a call of the tiny base, {steps} DDIM steps, {torch.get_num_threads()} threads"
    )
    for name in ("latents", "batch", "added, ms", "whole call, ms", "added / call"):
        table.add_column(name, justify="right")
    for size in (tiny_size, STABLE_DIFFUSION):
        pipe.register_modules(start_distribution=made_up_start(size))  # of no VAE, so it is not checked
        for batch in BATCHES:
            call = {"num_inference_steps": steps, "num_images_per_prompt": batch}

            def start(call: dict[str, int] = call) -> object:
                return pipe._start(PROMPT, CHOICE, **call)

            def whole(call: dict[str, int] = call) -> object:
                return pipe(PROMPT, class_name=CLASSES[0], guidance_scale=5.0, output_type="latent", **call)

            added = median_ms(start, repeats=300)
            row = [f"4 x {size} x {size}", str(batch), f"{added:.3f}"]
            if size == tiny_size:
                all_of_it = median_ms(whole, repeats=12)
                row += [f"{all_of_it:.1f}", f"{added / all_of_it:.2%}"]
            table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)

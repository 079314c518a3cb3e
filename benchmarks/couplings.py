"""What a coupling adds to a gallery: `python benchmarks/couplings.py [IMAGES] [STEPS]`

Times each coupling's draw less that of independent noise, at the size of the tiny base, of Stable Diffusion
and of SDXL, and a whole gallery of the tiny base with guidance and DDIM in one run, medians over many
repetitions, and prints their ratio. The gallery ends at the latents: decoding would make the ratio smaller.
"""

from __future__ import annotations

import sys

import torch
from diffusers import StableDiffusionPipeline
from onbrand.benchmarks.timing import median_ms
from onbrand.inference.couplings import Antithetic, Band, Identical, Independent, Mask, OnSubspace, Repulsive
from onbrand.train.models import TINY_BASE
from rich.console import Console
from rich.table import Table

SIZES = {"Stable Diffusion": 64, "SDXL": 128}


def couplings_at(size: int) -> dict[str, object]:
    half = torch.arange(size)[:, None].expand(size, size) < size // 2
    return {
        "independent": Independent(),
        "identical": Identical(),
        "antithetic": Antithetic(),
        "repulsive": Repulsive(),
        "mask: identical / repulsive": OnSubspace(Mask(half), Identical(), Repulsive()),
        "band: identical / repulsive": OnSubspace(Band(0, 0.25), Identical(), Repulsive()),
    }


def main(images: int, steps: int) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(TINY_BASE)
    pipe.set_progress_bar_config(disable=True)
    tiny = pipe.unet.config.sample_size

    def gallery() -> object:
        call = {"num_inference_steps": steps, "num_images_per_prompt": images, "guidance_scale": 5.0}
        return pipe("a red striped mug", output_type="latent", **call)

    whole = median_ms(gallery, repeats=12)
    threads = torch.get_num_threads()
    table = Table(
        title=f"Galleries of {images}, {steps} DDIM steps, {threads} threads: {whole:.0f} ms (tiny base)"
    )
    for name in ("coupling", "latents", "draw, ms", "over independent, ms", "over independent / gallery"):
        table.add_column(name, justify="left" if name == "coupling" else "right")
    for size in (tiny, *SIZES.values()):
        drawn = {}
        for name, coupling in couplings_at(size).items():
            generator = torch.Generator().manual_seed(0)
            drawn[name] = median_ms(
                lambda coupling=coupling, generator=generator, size=size: coupling.draw(
                    images, (4, size, size), generator
                ),
                repeats=300,
            )
            added = drawn[name] - drawn["independent"]
            share = f"{added / whole:.3%}" if size == tiny else ""
            table.add_row(name, f"4 x {size} x {size}", f"{drawn[name]:.3f}", f"{added:.3f}", share)
    Console().print(table)


if __name__ == "__main__":
    given = [int(number) for number in sys.argv[1:]]
    main(*(given + [4, 20][len(given) :]))

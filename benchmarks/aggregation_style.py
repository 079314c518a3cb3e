"""A style reference as the second model: `python benchmarks/aggregation_style.py MODELS OUT [--count 200]`

Trains an IP-Adapter for the tiny base, with an image encoder of its own, on scenes whose own pictures, turned
over, are the references; writes it to MODELS/style in the form `load_ip_adapter` reads. Then the boxes and
kinds of layouts, which `shapes` is shown (benchmarks/aggregation_models.py), are drawn with a reference that
only the adapter is shown: the distance of backdrops (CIEDE2000 of the border rings' median colours) to the
reference and to another one, and how many instances are there. What is in OUT/style.jsonl is not drawn again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from aggregation import BATCH as AT_A_TIME
from aggregation import STEPS, layouts
from aggregation_models import BATCH, Instances, condition_of, prompt_of, training_scenes
from aggregation_tables import SEED, hits, percent, rate
from diffusers import DDPMScheduler, StableDiffusionPipeline
from onbrand.assets.base import SCHEDULE
from onbrand.assets.crowded_scenes import SIDES, crowded_scene, crowded_scenes
from onbrand.assets.loop import optimise
from onbrand.assets.studio_detector import load_studio_detector
from onbrand.data.studio import Product
from onbrand.evaluation import compare, contact_sheet, standard_error
from onbrand.evaluation.detection import Detection
from onbrand.evaluation.look.foreground import measure
from onbrand.inference import AggregatedPipeline, load_pipeline
from onbrand.inference.generate import build_sampler
from onbrand.pca import Sampler
from onbrand.train.models import TINY_BASE
from PIL import Image
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from skimage.color import deltaE_ciede2000
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

TRAINING_SEED, PICTURES, TRAINING_STEPS, LEARNING_RATE = 61, 3_000, 600, 1e-3
REFERENCE_SEED, WIDTH, TOKENS = 63, 64, 4
CAPTIONLESS = 0.5
WEIGHTS = "ip-adapter.safetensors"


def tiny_image_encoder() -> CLIPVisionModelWithProjection:
    """An untrained two-layer CLIP image encoder for pictures of 64 x 64."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=WIDTH, intermediate_size=4 * WIDTH, projection_dim=WIDTH, num_hidden_layers=2,
            num_attention_heads=4, image_size=64, patch_size=8,
        )
    )  # fmt: skip


def adapter_of(unet: Any) -> dict[str, dict[str, Tensor]]:
    """An IP-Adapter's weights to begin with, as in its files; keys and values copied from the text's."""
    own = unet.state_dict()
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    weights = {
        f"{i}.to_{which}_ip.weight": own[f"{name}.to_{which}.weight"].float().clone()
        for i, name in enumerate(names)
        if name.endswith("attn2")
        for which in "kv"
    }
    projection = torch.nn.Linear(WIDTH, TOKENS * WIDTH)
    return {
        "image_proj": {
            "proj.weight": projection.weight.data, "proj.bias": projection.bias.data,
            "norm.weight": torch.ones(WIDTH), "norm.bias": torch.zeros(WIDTH),
        },
        "ip_adapter": weights,
    }  # fmt: skip


def save_adapter(unet: Any, image_encoder: Any, folder: Path) -> None:
    """Writes what `load_ip_adapter(folder, subfolder="", weight_name=WEIGHTS)` reads."""
    projection = unet.encoder_hid_proj.image_projection_layers[0]
    told = {
        "image_proj.proj.weight": projection.image_embeds.weight,
        "image_proj.proj.bias": projection.image_embeds.bias,
        "image_proj.norm.weight": projection.norm.weight,
        "image_proj.norm.bias": projection.norm.bias,
    }
    for i, processor in enumerate(unet.attn_processors.values()):
        for which in "kv":
            if hasattr(processor, f"to_{which}_ip"):
                layer = getattr(processor, f"to_{which}_ip")[0]
                told[f"ip_adapter.{i}.to_{which}_ip.weight"] = layer.weight
    image_encoder.save_pretrained(folder / "image_encoder")
    save_file({name: value.detach().contiguous() for name, value in told.items()}, folder / WEIGHTS)


def train(work: Path, steps: int) -> None:
    """Trains projection, the adapter's keys and values, and the image encoder; the tiny base stays."""
    torch.manual_seed(0)
    base = StableDiffusionPipeline.from_pretrained(TINY_BASE)
    base.register_modules(image_encoder=tiny_image_encoder())
    base.unet.float()
    every, told = training_scenes(work, base.vae.float(), 16_000)
    latents, told = every[:PICTURES], told[:PICTURES]
    counts = (i % len(SIDES) + 1 for i in range(PICTURES))
    scenes = crowded_scenes(range(PICTURES), counts, seed=TRAINING_SEED)
    captions = [" and ".join(Product(kind, colour).words() for kind, colour, _ in one) for one in told]
    base.load_ip_adapter([adapter_of(base.unet)], "", [WEIGHTS], low_cpu_mem_usage=False)
    pixels = base.feature_extractor([scene.picture for scene in scenes], return_tensors="pt").pixel_values
    unet, encoder = base.unet.requires_grad_(False), base.image_encoder.train()
    parts = [p for p in unet.attn_processors.values() if hasattr(p, "to_k_ip")]
    trained = torch.nn.ModuleList([*parts, unet.encoder_hid_proj, encoder]).requires_grad_(True)
    noise_scheduler = DDPMScheduler(**SCHEDULE)

    def loss_of(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(latents), (BATCH,), generator=generator)
        noise = torch.randn(latents[rows].shape, generator=generator)
        timesteps = torch.randint(1000, (BATCH,), generator=generator)
        noisy_latents = noise_scheduler.add_noise(latents[rows], noise, timesteps)
        silent = (torch.rand(BATCH, generator=generator) < CAPTIONLESS).tolist()
        texts = ["" if no else captions[row] for row, no in zip(rows.tolist(), silent, strict=True)]
        with torch.no_grad():
            encoder_hidden_states, _ = base.encode_prompt(texts, "cpu", 1, False)
        # turned over, so that where things are is not to be read off the reference
        turned = torch.rand((2, BATCH, 1, 1, 1), generator=generator) < 0.5
        shown = torch.where(turned[0], pixels[rows].flip(-1), pixels[rows])
        embeds = encoder(torch.where(turned[1], shown.flip(-2), shown)).image_embeds
        seen = {"image_embeds": [embeds[:, None]]}
        model_pred = unet(
            noisy_latents, timesteps, encoder_hidden_states, added_cond_kwargs=seen
        ).sample  # fmt: skip
        return F.mse_loss(model_pred, noise)

    optimise(
        trained, loss_of, name="style_training", work=work, steps=steps, learning_rate=LEARNING_RATE,
        checkpoint_every=200,
    )  # fmt: skip
    save_adapter(unet, encoder, work / "style")


def load_style(folder: Path) -> Any:
    """The tiny base with the adapter, through diffusers' own loader."""
    pipeline = load_pipeline(TINY_BASE)
    pipeline.load_ip_adapter(str(folder), subfolder="", weight_name=WEIGHTS)
    return pipeline


def backdrop(picture: Image.Image) -> np.ndarray:
    """Median Lab of the border ring, (3,)."""
    told = measure(picture)
    return np.array([told["background_l"], told["background_a"], told["background_b"]])


def distances(pictures: list[Image.Image], references: list[Image.Image], shift: int = 0) -> np.ndarray:
    """CIEDE2000 between each picture's backdrop and that of its reference, or of the one `shift` further."""
    theirs = np.roll(np.stack([backdrop(picture) for picture in references]), shift, axis=0)
    return deltaE_ciede2000(np.stack([backdrop(picture) for picture in pictures]), theirs)


def draw(
    pipelines: dict[str, Any], way: tuple[tuple[str, ...], int, str, float], asked: list[Instances],
    references: list[Image.Image], title: str,
) -> list[Image.Image]:  # fmt: skip
    models, steps, kind, weight = way
    members = [pipelines[model] for model in models]
    pictures = []
    for at in track(range(0, len(asked), AT_A_TIME), title, transient=True):
        part = asked[at : at + AT_A_TIME]
        calls: list[dict[str, Any]] = []
        for model in models:
            if model == "style":
                style = pipelines["style"]
                pixels = style.feature_extractor(references[at : at + AT_A_TIME], return_tensors="pt")
                embeds = style.image_encoder(pixels.pixel_values).image_embeds[:, None]
                calls.append({"prompt": [""] * len(part), "ip_adapter_image_embeds": [embeds]})
            else:
                shown = [condition_of(model, one, seed=(SEED, at + i)) for i, one in enumerate(part)]
                calls.append({"prompt": [prompt_of(model, one) for one in part], "image": shown})
        generator = [torch.Generator().manual_seed(SEED * 100_000 + at + i) for i in range(len(part))]
        shared = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "generator": generator}
        if steps:
            weights = (weight,) if len(models) == 2 else (0.5, weight)
            together = AggregatedPipeline(members, weights, steps, (0.0,) * len(models), kind=kind)
            pictures += together(calls=calls, **shared).images
        else:
            pictures += members[0](**calls[0], **shared).images
    return pictures


def ways(steps: int) -> dict[str, tuple[tuple[str, ...], int, str, float]]:
    return {
        "shapes": (("shapes",), 0, "", 0.0),
        "style": (("style",), 0, "", 0.0),
        **{f"shapes + style, s = {s}": (("shapes", "style"), s, "rescaled", 0.5) for s in (1, 3, steps)},
        f"shapes + style, s = {steps}, w = 0.8": (("shapes", "style"), steps, "rescaled", 0.8),
        f"shapes + colours, s = {steps}": (("shapes", "colours"), steps, "rescaled", 0.5),
        f"shapes + colours + style, s = {steps}": (("shapes", "colours", "style"), steps, "rescaled", 0.8),
    }


def main(
    models: Path, out: Path, count: int = 200, steps: int = 5, training_steps: int = TRAINING_STEPS
) -> None:
    if not (models / "style").exists():
        train(models, training_steps)
    torch.set_grad_enabled(False)
    out.mkdir(parents=True, exist_ok=True)
    console, file, detector = Console(), out / "style.jsonl", load_studio_detector()
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {line["way"]: line for line in lines if line["count"] == count}
    _, asked = layouts(count, first=0)
    references = [crowded_scene(i, 1, seed=REFERENCE_SEED).picture for i in range(count)]
    pipelines = {name: load_pipeline(models / name) for name in ("shapes", "colours")}
    pipelines["style"] = load_style(models / "style")
    for pipeline in pipelines.values():
        pipeline.scheduler = build_sampler(pipeline.scheduler, Sampler("DDPMScheduler", STEPS))
        pipeline.set_progress_bar_config(disable=True)
    for name, way in ways(steps).items():
        if name in done:
            continue
        pictures = draw(pipelines, way, asked, references, name)
        found = [[(d.label, d.box, d.score, d.colour) for d in one] for one in detector(pictures)]
        line = {
            "way": name, "count": count, "detections": found,
            "own": distances(pictures, references).tolist(),
            "other": distances(pictures, references, 1).tolist(),
        }  # fmt: skip
        np.savez_compressed(out / f"style-{len(done)}.npz", np.stack([np.asarray(p) for p in pictures[:8]]))
        done[name] = line | {"file": f"style-{len(done)}.npz"}
        with file.open("a") as opened:
            opened.write(json.dumps(done[name]) + "\n")
        console.print(name, np.mean(line["own"]))
    report(done, asked, references, out, console)


def report(
    done: dict[str, Any], asked: list[Instances], references: list[Image.Image], out: Path, console: Console
) -> None:
    head = ("way", "to the reference", "to another", "nearer to its own by", "place and kind", "success")
    told = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for name, line in done.items():
        found = [[Detection(d[0], tuple(d[1]), d[2], d[3]) for d in one] for one in line["detections"]]
        nearer = compare(line["other"], line["own"])
        cells = [
            f"{np.mean(line[which]):.1f} ± {standard_error(line[which]):.1f}" for which in ("own", "other")
        ]
        cells.append(f"{nearer.difference:.1f} ± {nearer.standard_error:.1f}")
        cells += [percent(*rate(hits(found, asked, what))) for what in ("kind", "all")]
        told.append(f"| {name} | " + " | ".join(cells) + " |")
    (out / "style.md").write_text("\n".join(told) + "\n")
    console.print("\n".join(told), soft_wrap=True)
    shown, captions = list(references[:8]), ["reference"] * 8
    for name, line in done.items():
        shown += [Image.fromarray(x) for x in np.load(out / line["file"])["arr_0"]]
        captions += [name] * 8
    contact_sheet(shown, captions=captions, columns=8, tile=112).save(out / "style.png")


if __name__ == "__main__":
    typer.run(main)

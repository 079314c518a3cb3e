"""Do things stand where the layout says? `python benchmarks/layouts.py OUT [--layouts 500]`

Random layouts of one to three products, each with a prompt that names them in the layout's order or another,
drawn by the tiny base in eight ways from the same seeds: plain, by guided attention (Paint, Soft), by
rearranged noise (Swap), by winning tickets (SemI) and by combinations. The packaged studio detector finds
boxes and colours. A row that is there is not drawn again. Prints success rate (IoU above .5), the same by
size of box, mean IoU and how many of the products are found in their colour at all; draws each way.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from onbrand.assets.studio_detector import load_studio_detector
from onbrand.data.studio import CLASSES, COLOURS
from onbrand.evaluation import contact_sheet
from onbrand.evaluation.detection import layout_scores, wanted_of
from onbrand.evaluation.layout_pictures import with_boxes
from onbrand.inference import load_pipeline
from onbrand.inference.couplings import Independent
from onbrand.inference.generate import build_sampler, sampling_with
from onbrand.inference.tickets.collection import TicketCollection
from onbrand.inference.tickets.guidance import Paint, Soft
from onbrand.inference.tickets.layouts import WINNERS, Layout
from onbrand.inference.tickets.swap import Swap
from onbrand.pca import Sampler
from onbrand.train.models import TINY_BASE
from rich.console import Console
from rich.progress import track

SEED, STEPS, GUIDANCE, NOISES, BACKGROUND = 51, 10, 3.0, 100, 0.3
# of the tiny base's layers the one whose first map tells best where things will stand (docs/results.md)
LAYER = "up_blocks.1.attentions.1.transformer_blocks.0.attn2"
CELLS = 4  # blocks a side of the tiny base
WAYS = {
    "plain": (), "Paint": ("paint",), "Soft": ("soft",), "Swap": ("swap",), "SemI": ("tickets",),
    "SemI + Soft": ("tickets", "soft"), "SemI + Swap": ("tickets", "swap"),
    "SemI + Swap + Soft": ("tickets", "swap", "soft"),
}  # fmt: skip


def random_layout(index: int) -> tuple[str, Layout]:
    """A prompt and where its products are to stand: side by side columns of blocks, of random height."""
    rng = np.random.default_rng([SEED, index])
    count = int(rng.choice([1, 2, 3], p=[0.4, 0.45, 0.15]))
    kinds = rng.choice(len(CLASSES), count, replace=False)
    colours = rng.choice(len(COLOURS), count, replace=False)
    names = [f"{list(COLOURS)[c]} {CLASSES[k]}" for k, c in zip(kinds, colours, strict=True)]
    widths = {1: (2, 3, 4), 2: (2,), 3: (1,)}[count]
    width = int(rng.choice(widths))
    left = int(rng.integers(0, CELLS - count * width + 1))
    boxes = []
    for place, name in enumerate(rng.permutation(names)):
        height = int(np.clip(width + rng.integers(-1, 2), 1 if count == 3 else 2, CELLS))
        top = int(rng.integers(0, CELLS - height + 1))
        x_0 = left + place * width
        box = (x_0 / CELLS, top / CELLS, (x_0 + width) / CELLS, (top + height) / CELLS)
        boxes.append((str(name), box))
    prompt = " and ".join(f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in names)
    return prompt, Layout(tuple(boxes))


def by_kind(layout: Layout) -> Layout:
    """The same boxes for the kinds alone, which tickets are collected for."""
    return Layout(tuple((name.split()[-1], box) for name, box in layout.boxes), background=WINNERS)


def draw(
    pipeline: Any, places: Sequence[int], way: tuple[str, ...], tickets: Any, weights: dict[str, float]
) -> list[Any]:
    """Pictures of these layouts, in one call if no way looks at the prompt's own attention."""
    shape = (4, *[pipeline.unet.config.sample_size] * 2)
    if len(places) > 1 and not {"soft", "paint", "swap"} & set(way):
        eps = [noise_of(i, way, tickets).draw(1, shape, generator_of(i)) for i in places]
        prompts = [random_layout(i)[0] for i in places]
        return pipeline(
            prompts, latents=torch.cat(eps), num_inference_steps=STEPS, guidance_scale=GUIDANCE
        ).images
    pictures = []
    for i in places:
        prompt, layout = random_layout(i)
        with ExitStack() as stack:
            for name, kind in (("soft", Soft), ("paint", Paint)):
                if name in way:
                    stack.enter_context(kind(layout, weights[name]).on(pipeline, prompt))
            pictures += pipeline(
                prompt, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
                noise=noise_of(i, way, tickets), generator=generator_of(i),
            ).images  # fmt: skip
    return pictures


def generator_of(index: int) -> torch.Generator:
    return torch.Generator().manual_seed(SEED * 1000 + index)


def noise_of(index: int, way: tuple[str, ...], tickets: TicketCollection) -> Any:
    _, layout = random_layout(index)
    kinds, noise = by_kind(layout), Independent()
    if "tickets" in way:
        among = tickets.concepts if len(kinds.boxes) == 1 else None
        noise = tickets.layout_noise(kinds, among=among, t_bg=BACKGROUND)
    return Swap(layout, noise, layer=LAYER) if "swap" in way else noise


def main(
    out: Path,
    layouts: int = 500,
    soft: Annotated[float, typer.Option(help="Weight of Soft")] = 1.0,
    paint: Annotated[float, typer.Option(help="Weight of Paint")] = 0.4,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    console, file = Console(), out / "cells.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    key = {"layouts": layouts, "soft": soft, "paint": paint}
    found = {line["way"]: line for line in lines if {name: line[name] for name in key} == key}
    pipeline, detector = load_pipeline(TINY_BASE), load_studio_detector()
    scheduler = build_sampler(pipeline.scheduler, Sampler("DDIMScheduler", STEPS))
    began = time.perf_counter()
    with sampling_with(pipeline, scheduler):
        tickets = TicketCollection.build(
            pipeline, CLASSES, noises=NOISES, num_inference_steps=STEPS, layer=LAYER
        )
    console.print(f"{NOISES} noises, {len(CLASSES)} concepts: {time.perf_counter() - began:.0f} s")
    wanted = [
        wanted_of(random_layout(i)[1], detector.labels, colours=detector.colours) for i in range(layouts)
    ]
    for name, way in WAYS.items():
        if name in found:
            continue
        began = time.perf_counter()
        with sampling_with(pipeline, scheduler):
            weights = {"soft": soft, "paint": paint}
            parts = [range(i, min(i + 32, layouts)) for i in range(0, layouts, 32)]
            pictures = []
            for part in track(parts, name, console=console, transient=True):
                pictures += draw(pipeline, part, way, tickets, weights)
        seconds = time.perf_counter() - began
        np.savez_compressed(out / f"{name.replace(' ', '')}.npz", np.stack([np.asarray(p) for p in pictures]))
        detections = detector(pictures)
        scores = layout_scores(detections, wanted)
        shown = [with_boxes(picture, random_layout(i)[1].boxes) for i, picture in enumerate(pictures[:32])]
        contact_sheet(shown, columns=8, title=name).save(out / f"{name.replace(' ', '')}.png")
        right = [
            any(d.label == w.label and d.colour == w.colour for d in there)
            for there, asked in zip(detections, wanted, strict=True)
            for w in asked
        ]
        told = {size: score._asdict() for size, score in scores.items()}
        line = {"way": name, **key, "seconds": seconds, "scores": told, "there": float(np.mean(right))}
        found[name] = line
        with file.open("a") as opened:
            opened.write(json.dumps(line) + "\n")
        console.print(name, told["all"], f"{seconds:.0f} s")
    (out / "table.md").write_text(table(found))
    console.print(table(found))


def table(found: dict[str, Any]) -> str:
    sizes = ("all", "small", "medium", "large")
    counts = next(iter(found.values()))["scores"]
    head = " | ".join(f"{size} (n = {counts[size]['n']})" for size in sizes if size in counts)
    lines = [f"| way | {head} | mean IoU | found in its colour | s a picture |"]
    lines.append("|---" + "|---:" * (head.count("|") + 4) + "|")
    for name in (name for name in WAYS if name in found):
        line = found[name]
        cells = [
            f"{100 * line['scores'][s]['success']:.1f} ± {100 * line['scores'][s]['standard_error']:.1f} %"
            for s in sizes
            if s in counts
        ]
        iou, there = line["scores"]["all"]["mean_iou"], 100 * line["there"]
        rest = f"{iou:.3f} | {there:.1f} % | {line['seconds'] / line['layouts']:.2f}"
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {rest} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)

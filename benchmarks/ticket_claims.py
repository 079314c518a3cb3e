"""Do tickets win again? `python benchmarks/ticket_claims.py OUT [--layouts 200]`

On the tiny base: winning blocks are put at random places of noises they do not come from, and scored again,
under the prompt they won with and under others with the same concept; beside the blocks that stood there
before. Then the success of layouts over thresholds and numbers of noises, with how far the constructed noise
is from N(0, 1). Also how well each layer's first map tells where things will stand. Writes OUT/*.md.
"""

from __future__ import annotations

import importlib.util
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from onbrand.assets.studio_detector import load_studio_detector
from onbrand.data.studio import CLASSES
from onbrand.evaluation.detection import layout_scores, wanted_of
from onbrand.inference import load_pipeline
from onbrand.inference.couplings import Independent
from onbrand.inference.generate import build_sampler, sampling_with
from onbrand.inference.tickets.attention_maps import capture_maps, cross_attentions
from onbrand.inference.tickets.blocks import cut, paste
from onbrand.inference.tickets.collection import TicketCollection
from onbrand.inference.tickets.first_pass import conditioning, first_seen, normalised
from onbrand.inference.tickets.guidance import filled, words_in
from onbrand.inference.tickets.layouts import FRESH, WINNERS, Layout
from onbrand.pca import Sampler
from onbrand.train.models import TINY_BASE
from rich.console import Console
from scipy import stats

spec = importlib.util.spec_from_file_location("layouts", Path(__file__).with_name("layouts.py"))
layouts_study: Any = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
spec.loader.exec_module(layouts_study)  # type: ignore[union-attr]
LAYER, STEPS = layouts_study.LAYER, layouts_study.STEPS
TRIALS = 256
SHAPE = (4, 16, 16)


def first_maps(pipeline: Any, eps: torch.Tensor, prompt: str, concept: str) -> torch.Tensor:
    """The concept's map at the first step for each noise, (N, cells) in [0, 1]."""
    text = conditioning(pipeline, [prompt], height=64, width=64)["encoder_hidden_states"]
    seen, timestep = first_seen(pipeline.scheduler, STEPS, None, eps)
    with torch.no_grad(), capture_maps(pipeline.unet, LAYER, stop=True) as maps:
        pipeline.unet(seen, timestep, encoder_hidden_states=text.expand(len(eps), -1, -1))
    (own,) = words_in(pipeline, prompt, [concept])
    return normalised(maps[0][..., own].mean(-1))


def transplants(pipeline: Any, tickets: TicketCollection) -> str:
    rng, generator = np.random.default_rng(61), torch.Generator().manual_seed(10**6)
    prompts = {
        "the prompt it won with": "a {0} and a {1}",
        "the other way round": "a {1} and a {0}",
        "another second thing": "a {0} and a {2}",
        "colours as well": "a red {0} and a blue {1}",
        "alone": "a {0}",
    }
    wins: dict[str, list[tuple[bool, bool]]] = {name: [] for name in prompts}
    scores: dict[str, list[tuple[float, float]]] = {name: [] for name in prompts}
    for concept in CLASSES:
        others = rng.choice([name for name in CLASSES if name != concept], 2, replace=False)
        blocks = tickets.blocks(tickets.winners(concept, [concept, str(others[0])]))
        count = TRIALS // len(CLASSES)
        fresh = torch.randn(count, *SHAPE, generator=generator)
        grid = cut(fresh, tickets.setting.block).clone()
        rows, columns = rng.integers(0, grid.shape[1], count), rng.integers(0, grid.shape[2], count)
        chosen = blocks[torch.from_numpy(rng.integers(0, len(blocks), count))]
        grid[torch.arange(count), rows, columns] = chosen
        moved = paste(grid)
        for name, form in prompts.items():
            prompt = form.format(concept, *others)
            cells = torch.from_numpy(rows * grid.shape[2] + columns)
            own, before = (
                first_maps(pipeline, eps, prompt, concept)[torch.arange(count), cells]
                for eps in (moved, fresh)
            )
            wins[name] += [(bool(a > 0.5), bool(b > 0.5)) for a, b in zip(own, before, strict=True)]
            scores[name] += [(float(a), float(b)) for a, b in zip(own, before, strict=True)]
    lines = [
        "| prompt | ticket scores above .5 | the block before it | mean score | before | p |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in prompts:
        pairs, values = np.array(wins[name]), np.array(scores[name])
        share, error = pairs.mean(0), (pairs.mean(0) * (1 - pairs.mean(0)) / len(pairs)) ** 0.5
        p = stats.ttest_rel(values[:, 0], values[:, 1]).pvalue
        lines.append(
            f"| {name} | {100 * share[0]:.1f} ± {100 * error[0]:.1f} % | {100 * share[1]:.1f} ± "
            f"{100 * error[1]:.1f} % | {values[:, 0].mean():.3f} | {values[:, 1].mean():.3f} | {p:.0e} |"
        )
    return "\n".join(lines) + "\n"


def drawn(pipeline: Any, indices: range, initializer: Any) -> tuple[list[Any], torch.Tensor]:
    eps = torch.cat([initializer(i).draw(1, SHAPE, layouts_study.generator_of(i)) for i in indices])
    pictures: list[Any] = []
    for first in range(0, len(eps), 32):
        prompts = [layouts_study.random_layout(i)[0] for i in indices[first : first + 32]]
        pictures += pipeline(
            prompts, latents=eps[first : first + 32], num_inference_steps=STEPS,
            guidance_scale=layouts_study.GUIDANCE,
        ).images  # fmt: skip
    return pictures, eps


def sweep(pipeline: Any, tickets: TicketCollection, *, layouts: int, console: Console) -> str:
    detector, indices = load_studio_detector(), range(layouts)
    wanted = [
        wanted_of(layouts_study.random_layout(i)[1], detector.labels, colours=detector.colours)
        for i in indices
    ]
    settings = [(100, t_obj, 0.3) for t_obj in (0.3, 0.5, 0.7, 0.8)]
    settings += [(100, 0.5, t_bg) for t_bg in (None, 0.2, 0.4)] + [(n, 0.5, 0.3) for n in (25, 50)]
    lines = [
        "| noises | T_obj | T_bg | success | small | medium | large | mean IoU | variance | KS to N(0, 1) |",
        "|---:|---:|---:|" + "---:|" * 7,
    ]
    for noises, t_obj, t_bg in settings:
        some = tickets if noises == 100 else fewer(tickets, noises)

        def initializer(i: int, some: Any = some, t_obj: float = t_obj, t_bg: float | None = t_bg) -> Any:
            boxes = layouts_study.by_kind(layouts_study.random_layout(i)[1]).boxes
            layout = Layout(boxes, background=FRESH if t_bg is None else WINNERS)
            among = some.concepts if len(boxes) == 1 else None
            return some.layout_noise(layout, among=among, t_obj=t_obj, t_bg=t_bg or 0.1)

        try:
            pictures, eps = drawn(pipeline, indices, initializer)
        except ValueError as error:
            console.print(f"{noises} noises, T_obj {t_obj}, T_bg {t_bg}: {error}", soft_wrap=True)
            continue
        found = layout_scores(detector(pictures), wanted)
        cells = [
            f"{100 * found[size].success:.1f} ± {100 * found[size].standard_error:.1f} %"
            if size in found
            else ""
            for size in ("all", "small", "medium", "large")
        ]
        values = eps.flatten().numpy()
        distance = stats.kstest(values, "norm").statistic
        lines.append(
            f"| {noises} | {t_obj} | {t_bg or 'fresh noise'} | "
            + " | ".join(cells)
            + f" | {found['all'].mean_iou:.3f} | {values.var():.3f} | {distance:.4f} |"
        )
        console.print(lines[-1], soft_wrap=True)
    return "\n".join(lines) + "\n"


def fewer(tickets: TicketCollection, noises: int) -> TicketCollection:
    return TicketCollection(
        tickets.concepts, tickets.seeds[:noises], tickets.scores[:, :, :noises], tickets.setting,
        tickets.fingerprint,
    )  # fmt: skip


def layers(pipeline: Any, *, layouts: int) -> str:
    """Correlation of each layer's first map with where the detector then finds the concept."""
    detector, factors = load_studio_detector(), cross_attentions(pipeline.unet)
    found: dict[str, list[float]] = {name: [] for name in factors}
    plain = Independent()
    for first in range(0, layouts, 32):
        indices = range(first, min(first + 32, layouts))
        with ExitStack() as stack:
            maps = {name: stack.enter_context(capture_maps(pipeline.unet, name)) for name in factors}
            pictures, _ = drawn(pipeline, indices, lambda i: plain)
        for place, (i, there) in enumerate(zip(indices, detector(pictures), strict=True)):
            prompt, layout = layouts_study.random_layout(i)
            for concept, _ in layout.boxes:
                boxes = [one.box for one in there if one.label == concept.split()[-1]]
                if not boxes:
                    continue
                (own,) = words_in(pipeline, prompt, [concept.split()[-1]])
                for name, factor in factors.items():
                    side = 16 // factor
                    seen = maps[name][0][-len(indices) :][place][:, own].mean(-1)
                    covered = filled(boxes[0], side, side).flatten()
                    if float(covered.std()) and float(seen.std()):
                        found[name].append(float(np.corrcoef(seen, covered)[0, 1]))
    lines = ["| layer | latents a cell | correlation with the place |", "|---|---:|---:|"]
    for name, values in found.items():
        error = np.std(values) / len(values) ** 0.5
        short = name.replace(".transformer_blocks.0.attn2", "")
        lines.append(f"| {short} | {factors[name]} | {np.mean(values):.2f} ± {error:.2f} |")
    return "\n".join(lines) + "\n"


def main(out: Path, layouts: int = 200) -> None:
    out.mkdir(parents=True, exist_ok=True)
    console, pipeline = Console(), load_pipeline(TINY_BASE)
    with sampling_with(pipeline, build_sampler(pipeline.scheduler, Sampler("DDIMScheduler", STEPS))):
        tickets = TicketCollection.build(
            pipeline, CLASSES, noises=100, num_inference_steps=STEPS, layer=LAYER
        )
        studies = {
            "transplants": lambda: transplants(pipeline, tickets),
            "layers": lambda: layers(pipeline, layouts=layouts),
            "sweep": lambda: sweep(pipeline, tickets, layouts=layouts, console=console),
        }
        for name, study in studies.items():
            text = study()
            (out / f"{name}.md").write_text(text)
            console.print(text, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)

"""The exact denoiser as an oracle of offset training: a network's distance to it over the training steps."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from chart import line_chart
from models import BATCH, Denoiser, Model
from onbrand.assets.loop import optimise
from onbrand.data.studio import CLASSES
from onbrand.inference.closed_form import optimal_eps
from onbrand.pca import StartDistribution, offset_target
from pictures import class_ids, latents
from results import mean_of, show, told
from torch import Tensor

FEW, OFFSET_FROM, STEPS, EVERY = 64, 300, 1500, 100
PROBED = (300, 400, 500, 600, 700, 800, 900, 999)  # timesteps at which predictions are compared
PROBES = 64  # noisy latents a timestep
COMPONENTS = (0, 2)


def offset(out: Path) -> None:
    """Root mean square distances of eps inside the offset range, of networks trained with the offset loss."""
    rows = []
    for components in COMPONENTS:
        lines = _followed(components, out)
        line_chart(
            {
                name: [(i, line[name]["value"], line[name]["standard_error"]) for i, line in enumerate(lines)]
                for name in ("network to offset", "network to plain", "plain to offset")
            },
            title=f"Distance to the exact denoisers inside the offset range, K = {components}",
            places=[str(line["step"]) if line["step"] % 500 == 0 else "" for line in lines],
            below="training steps",
            highest=0.6,
            marks=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
        ).save(out / f"offset_{components}.png")
        for line in lines:
            if line["step"] in (0, EVERY, 500, 1000, STEPS):
                names = ("network to offset", "network to plain", "plain to offset")
                rows.append([f"K = {components}, {line['step']} steps", *(told(line[n], 4) for n in names)])
    columns = ["", "network to offset", "network to plain", "plain to offset"]
    show(f"RMS distance of eps, t >= {OFFSET_FROM}, n = {len(PROBED) * PROBES}", columns, rows)


def _followed(components: int, out: Path) -> list[dict]:
    """Trains as any offset training does, over all timesteps; distances every EVERY steps, as JSON lines."""
    file = out / f"offset_{components}.jsonl"
    x_0s, ids = latents(out, "a", FEW), class_ids(FEW)
    start = StartDistribution.fit(
        x_0s, ids, class_names=CLASSES, components=components, offset_from=OFFSET_FROM
    )
    model = Model(seed=30 + components, conditional=True)
    network, scheduler = Denoiser(model), model.scheduler()
    powers = scheduler.alphas_cumprod
    probes = list(_probes(x_0s, ids, start, powers))
    done = len(file.read_text().splitlines()) if file.exists() else 0
    step = 0

    def loss_of(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(x_0s), (BATCH,), generator=generator)
        noise = torch.randn(BATCH, *x_0s.shape[1:], generator=generator)
        timesteps = torch.randint(1000, (BATCH,), generator=generator)
        x_0 = x_0s[rows]
        noisy, target = offset_target(
            x_0,
            start.project(x_0, ids[rows]),
            noise,
            timesteps,
            alphas_cumprod=powers,
            offset_from=OFFSET_FROM,
        )
        network.labels = ids[rows]
        return F.mse_loss(network(noisy, timesteps).sample, target)

    def after_step() -> None:
        nonlocal step
        step += 1
        if step % EVERY == 0:
            look()

    @torch.no_grad()
    def look() -> None:
        gaps = {"network to offset": [], "network to plain": [], "plain to offset": []}
        for x, labels, timestep, with_offset, plain in probes:
            network.labels = labels
            found = network(x, timestep).sample
            for name, gap in (
                ("network to offset", found - with_offset),
                ("network to plain", found - plain),
                ("plain to offset", plain - with_offset),
            ):
                gaps[name] += gap.double().square().flatten(1).mean(1).sqrt().tolist()
        with file.open("a") as lines:
            lines.write(
                json.dumps({"step": step, **{name: mean_of(each) for name, each in gaps.items()}}) + "\n"
            )

    if done <= STEPS // EVERY:
        file.unlink(missing_ok=True)
        look()
        optimise(
            network, loss_of, name=f"offset-{components}", work=out / "training", steps=STEPS,
            learning_rate=2e-3, after_step=after_step, checkpoint_every=STEPS,
        )  # fmt: skip
    return [json.loads(line) for line in file.read_text().splitlines()]


def _probes(x_0s: Tensor, ids: Tensor, start: StartDistribution, powers: Tensor):  # type: ignore[no-untyped-def]
    """Noisy latents as in offset training, and what both exact denoisers of their class predict there."""
    generator = torch.Generator().manual_seed(99)
    for timestep in PROBED:
        rows = torch.arange(PROBES) % len(x_0s)
        a = float(powers[timestep])
        noise = torch.randn(PROBES, *x_0s.shape[1:], generator=generator)
        x = a**0.5 * start.project(x_0s[rows], ids[rows]) + (1 - a) ** 0.5 * noise
        with_offset, plain = torch.empty_like(x), torch.empty_like(x)
        for label in range(len(CLASSES)):
            own = ids[rows] == label
            for exact, given in ((with_offset, start), (plain, None)):
                exact[own] = optimal_eps(x[own], [(x_0s, ids)], a, start=given, class_id=label).float()
        yield x, ids[rows], timestep, with_offset, plain

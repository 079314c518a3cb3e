"""The model card of a run's checkpoint: its audits and pictures beside how to load it."""

from __future__ import annotations

import json
from pathlib import Path

from ..configs.schema import Config
from ..export.card import start_facts, write_card
from ..pca import StartDistribution
from .plan import trained_of
from .stage import recorded

PICTURE = "before_and_after.png"


def write_run_card(
    config: Config, start_distribution: StartDistribution, *, vae_scale_factor: int, run: Path, folder: Path
) -> Path:
    """Writes README.md into `folder`, the run's model or a copy of it."""
    audits = {file.stem: json.loads(file.read_text()) for file in sorted((run / "audits").glob("*.json"))}
    shipped, picture = run / "audit.json", run / PICTURE
    facts = start_facts(start_distribution, vae_scale_factor=vae_scale_factor)
    train = config.train
    batch = recorded(run, "global batch", train.batch_size * train.gradient_accumulation)
    trained = [f"{part} {how}" for part, how in trained_of(config.model).items()]
    steps = f"{train.steps} steps of {batch} pictures, learning rate {train.learning_rate:g}"
    facts |= {
        "trained": "; ".join([*trained, steps]),
        "seed": config.run.seed,
        "audited with": f"{config.run.audit.scheduler}, {config.run.audit.steps} steps, guidance "
        f"{config.run.audit.guidance_scale:g}",
    }
    return write_card(
        folder,
        title=run.name,
        audit=json.loads(shipped.read_text()) if shipped.exists() else None,
        comparisons=audits,
        pictures=[picture] if picture.exists() else [],
        base=config.model.base,
        facts=facts,
        example={
            "num_inference_steps": config.run.audit.steps,
            "guidance_scale": config.run.audit.guidance_scale,
        },
    )

"""The short resumable loop that trains the tiny base's parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.optimization import get_cosine_schedule_with_warmup
from rich.progress import Progress

from ..whole_file import whole


def optimise(
    module: torch.nn.Module,
    loss_of: Callable[[torch.Generator], torch.Tensor],
    *,
    name: str,
    work: Path,
    steps: int,
    learning_rate: float,
    after_step: Callable[[], None] = lambda: None,
    state: tuple = (),
    checkpoint_every: int = 500,
) -> None:
    """Minimises `loss_of(generator)` over the module's parameters with AdamW and a cosine schedule.

    The generator is seeded by the step, so a run resumed from the newest checkpoint in `work/name` draws what
    the uninterrupted one would have drawn. `state` lists further objects with a state_dict to checkpoint.
    The loss curve goes to `work/name.jsonl`.
    """
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, weight_decay=0.01, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, min(200, steps // 10), steps)
    accelerator.register_for_checkpointing(schedule, *state)
    folder, log = work / name, work / f"{name}.jsonl"
    prepared, optimizer = accelerator.prepare(module, optimizer)
    first = _newest(folder)
    if first:
        accelerator.load_state(str(folder / f"step_{first}"))
    if log.exists():  # what was logged after the checkpoint will be logged again
        kept = [
            line for line in log.read_text().splitlines(keepends=True) if json.loads(line)["step"] <= first
        ]
        log.write_text("".join(kept))
    generator = torch.Generator()
    mean = 0.0
    with Progress() as progress, log.open("a") as lines:
        bar = progress.add_task(name, total=steps, completed=first)
        for step in range(first, steps):
            loss = loss_of(generator.manual_seed(step))
            if not torch.isfinite(loss):
                raise ValueError(f"loss of {name} must be finite, got {loss.item()} at step {step}")
            optimizer.zero_grad()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            after_step()
            mean += (loss.item() - mean) / (step % 50 + 1)
            if (step + 1) % 50 == 0:
                lines.write(json.dumps({"step": step + 1, "loss": round(mean, 5)}) + "\n")
                lines.flush()
                progress.update(bar, completed=step + 1, description=f"{name} loss {mean:.4f}")
                mean = 0.0
            if (step + 1) % checkpoint_every == 0 or step + 1 == steps:
                with whole(folder / f"step_{step + 1}") as beside:
                    accelerator.save_state(str(beside))


def _newest(folder: Path) -> int:
    """The step of the newest complete checkpoint, 0 if there is none."""
    return max((int(p.name[5:]) for p in folder.glob("step_*") if p.name[5:].isdigit()), default=0)

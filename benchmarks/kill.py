"""Does a killed run end with the same bits? `python benchmarks/kill.py [--kills 20] [--method lora]`

Two short runs of the tiny base are left alone, the second to show that equal bits can be expected at all.
Then each trial kills the same command with SIGKILL at a moment drawn from (seed, trial), every third time
while a checkpoint, the export or a shard of latents is being written, starts it again and compares what it
ends with. The folder of a trial that ends otherwise is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from onbrand.train.checkpoint import checkpoints, step_of
from onbrand.train.metrics import METRICS, read_metrics
from rich.console import Console
from rich.live import Live
from rich.table import Table

PICTURES, STEPS, BATCH = 300, 12, 4  # pictures for more than one shard of latents
PROMISED = ("model/", "lora/", "token/", "start_distribution/", "audits/", "audit.json", "limits.json")
UNREPEATABLE = ("per_second", "memory", "seconds")  # parts of the names of what is measured, not computed
SHARD = "shard"
SHOWN = 3  # differences and remarks of a trial
OTHER_SAVES = {SHARD, "start_distribution.partial", "model.partial", "lora.partial"}  # beside checkpoints
HALF_SHARDS = "*/shard-*.partial"


@dataclass(frozen=True)
class Kill:
    """When to kill: so many seconds after the start, or after a save, by the name it has on disk, began."""

    seconds: float
    save: str | None = None


@dataclass
class Watched:
    """How a process went: its seconds, whether it was killed, when step 1 was logged, when it saved what."""

    seconds: float = 0.0
    killed: bool = False
    error: str = ""
    first_step: float | None = None
    saves: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A folder with a run, its log and, unless it is shared, its latents."""

    root: Path
    cache: Path
    overrides: tuple[str, ...]

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def command(self) -> list[str]:
        values = {
            "data.studio.pictures": PICTURES, "data.cache_dir": self.cache,
            "train.steps": STEPS, "train.batch_size": BATCH, "train.warmup_steps": 2, "train.log_every": 1,
            "train.checkpoint_every": 2, "train.preview_every": 6, "run.audit.pictures": 4,
            "run.audit.steps": 20, "run.dir": self.run,
        }  # fmt: skip
        fixed = [f"{key}={value}" for key, value in values.items()]
        return [sys.executable, "-m", "onbrand", "train", "quickstart", *fixed, *self.overrides]

    def start(self, kill: Kill | None = None) -> Watched:
        """Runs the command to its end or its kill."""
        watched, log = Watched(), self.root / "log.txt"
        with log.open("ab") as lines:
            began, since = time.perf_counter(), time.time()
            process = subprocess.Popen(self.command, stdout=lines, stderr=lines, start_new_session=True)
            try:
                while process.poll() is None and not watched.killed:
                    watched.seconds = time.perf_counter() - began
                    self._look(watched, since=since)
                    if kill and watched.seconds >= _due(kill, watched):
                        os.killpg(process.pid, signal.SIGKILL)
                        watched.killed = True
                    time.sleep(0.001)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        watched.killed &= process.returncode == -signal.SIGKILL  # it may have ended by itself just before
        if process.returncode and not watched.killed:
            watched.error = f"ended with status {process.returncode}, see {log}"
        return watched

    def _look(self, watched: Watched, *, since: float) -> None:
        paths = (*self.run.glob("*.partial"), *self.run.glob("checkpoints/*.partial"))
        for path in (*paths, *self.cache.glob(HALF_SHARDS)):
            # gone in the meantime, or left behind by an earlier kill
            with suppress(FileNotFoundError):
                if path.stat().st_mtime >= since:
                    name = SHARD if path.name.startswith("shard-") else path.name
                    first, _ = watched.saves.get(name, (watched.seconds, 0.0))
                    watched.saves[name] = (first, watched.seconds)
        if watched.first_step is None and (self.run / METRICS).exists():
            watched.first_step = watched.seconds


def _due(kill: Kill, watched: Watched) -> float:
    if kill.save is None:
        return kill.seconds
    return watched.saves[kill.save][0] + kill.seconds if kill.save in watched.saves else float("inf")


def plan_kill(alone: Watched, *key: int) -> Kill:
    """Any moment of a run left alone or, every third trial, one of a save or shortly after it.

    key: seed, trial, and which kill of the trial it is.
    """
    random = np.random.default_rng(key)
    if key[1] % 3:
        return Kill(random.uniform(0, alone.seconds))
    # a save over within a millisecond is seldom seen
    lasting = {name: last - first for name, (first, last) in alone.saves.items() if last > first}
    steps = sorted(name for name in lasting if name.startswith("step_"))
    others = sorted(lasting.keys() & OTHER_SAVES)
    name = str(random.choice(others if others and random.random() < 0.5 else steps))
    return Kill(random.uniform(0, 1.2 * lasting[name]), name)


def stage(job: Job) -> str:
    """How far the run was, by what is on disk."""
    run = job.run
    if (run / "audit.json").exists():
        return "audits done"
    if (run / "model").exists():
        return "exported"
    if any((run / f"{name}.partial").exists() for name in ("model", "lora")):
        return "half an export"
    if partial := list(run.glob("checkpoints/*.partial")):
        return f"half of checkpoint {step_of(partial[-1].with_suffix(''))}"
    if rows := read_metrics(run):
        return f"step {rows[-1]['step']} logged"
    if (run / "inputs.json").exists():
        return "start distribution, limits"
    if shards := list(job.cache.glob("*/shard-*.safetensors")):
        return f"{len(shards)} shard(s) of latents"
    return "half a shard of latents" if list(job.cache.glob(HALF_SHARDS)) else "nothing"


def products(run: Path) -> dict[str, str]:
    """sha256 by name of everything a run promises, and its metrics without what is measured."""
    hashes = {name: _sha256(run / name) for name in _files(run) if name.startswith(PROMISED)}
    for row in read_metrics(run):
        kept = {key: value for key, value in row.items() if not any(part in key for part in UNREPEATABLE)}
        hashes[f"{METRICS}, step {row['step']:02d}"] = hashlib.sha256(json.dumps(kept).encode()).hexdigest()
    return hashes


def resumed_from(before: list[dict], run: Path) -> int:
    """The last step not taken again: its line in the metrics, pace included, is still the old one."""
    step = 0
    for old, new in zip(before, read_metrics(run), strict=False):
        if old != new:
            break
        step = new["step"]
    return step


def remarks(job: Job, reference: Job) -> list[str]:
    """What is on disk, or in the sample pictures, otherwise than without the kill."""
    here, there = set(_files(job.root)), set(_files(reference.root))
    notes = [f"missing: {name}" for name in sorted(there - here)]
    notes += [f"left behind: {name}" for name in sorted(here - there)]
    for name in sorted(here & there):
        if name.startswith("run/samples/") and _sha256(job.root / name) != _sha256(reference.root / name):
            notes.append(f"other picture: {name}")
    return notes if len(notes) <= SHOWN else [*notes[:SHOWN], f"and {len(notes) - SHOWN} more"]


def _files(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", help="More of the run's config")
    ] = None,
    kills: Annotated[int, typer.Option(min=1, help="Trials")] = 20,
    times: Annotated[int, typer.Option(min=1, help="Kills in a row in each trial")] = 1,
    method: Annotated[str, typer.Option(help="full or lora")] = "full",
    seed: Annotated[int, typer.Option(min=0, help="Of the moments")] = 0,
    keep_cache: Annotated[bool, typer.Option("--keep-cache", help="One latent cache for all runs")] = False,
    folder: Annotated[Path, typer.Option(help="Where the runs live")] = Path("runs/kill"),
) -> None:
    """Kills a short run again and again, and compares what it ends with."""
    console, changes = Console(), (f"model.method={method}", *(overrides or ()))

    def new_job(name: str) -> Job:
        root = folder.resolve() / name
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        return Job(root, (folder.resolve() if keep_cache else root) / "latents", changes)

    reference, control = new_job("reference"), new_job("control")
    with console.status("two runs that nobody kills"):
        first, alone = reference.start(), control.start()
    if error := first.error or alone.error:
        console.print(f"A run that nobody killed {error}", soft_wrap=True)
        raise typer.Exit(1)
    expected = products(reference.run)
    if unsure := _changed(expected, products(control.run)):
        console.print(f"Not compared, as they differ between two runs left alone: {', '.join(unsure)}")
        if any(name.startswith("model/") for name in unsure):
            raise typer.Exit(1)
    shutil.rmtree(control.root)
    table = Table(title=f"{' '.join(changes)}: {STEPS} steps of batch {BATCH}, killed and started again")
    for name in ("trial", "killed at, s", "on disk then", "went on from", "same bits", "remarks"):
        table.add_column(name, justify="right" if name in ("trial", "killed at, s") else "left")
    early = hit = wrong = 0
    with Live(table, console=console, auto_refresh=False) as live:
        for trial in range(kills):
            job, moments, stages = new_job(f"trial_{trial}"), [], []
            for again in range(times):
                watched = job.start(plan_kill(alone, seed, trial, again))
                if not watched.killed:
                    break
                moments.append(f"{watched.seconds:.2f}")
                stages.append(stage(job))
                early += not read_metrics(job.run)
            before, saved = read_metrics(job.run), [0, *map(step_of, checkpoints(job.run))][-1]
            error = watched.error or job.start().error
            changed = [error] if error else _changed(expected, products(job.run), but=unsure)
            if (resumed := resumed_from(before, job.run)) != saved:
                changed.append(f"checkpoint {saved} not used")
            hit, wrong = hit + bool(moments), wrong + bool(changed)
            table.add_row(
                str(trial), "\n".join(moments) or "ended first", "\n".join(stages), f"step {resumed}",
                "no: " + "; ".join(changed[:SHOWN]) if changed else "yes", "\n".join(remarks(job, reference)),
            )  # fmt: skip
            live.refresh()
            if not changed:
                shutil.rmtree(job.root)
    share = (alone.first_step or 0) / alone.seconds
    console.print(
        f"\n{hit} of {kills} runs were killed, {wrong} ended otherwise than the one left alone. That takes "
        f"{alone.seconds:.1f} s, {share:.0%} of them before step 1 is done; {early} of the kills fell there."
    )
    raise typer.Exit(bool(wrong))


def _changed(expected: dict[str, str], found: dict[str, str], *, but: Sequence[str] = ()) -> list[str]:
    names = (expected | found).keys() - set(but)
    differ = [name for name in names if expected.get(name) != found.get(name)]
    return sorted(differ, key=lambda name: (METRICS not in name, name))


if __name__ == "__main__":
    typer.run(main)

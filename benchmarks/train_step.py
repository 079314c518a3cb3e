"""Our training loop beside a plain one: `python benchmarks/train_step.py [--method lora]`

The plain loop takes the steps of diffusers' train_text_to_image.py: VAE, text encoder, noise, UNet, loss,
clip, AdamW with its own defaults, EMA. Ours is `onbrand.train` itself, logging included. The two take turns
in blocks of steps and are compared block by block. Memory is that of a process of its own.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import torch
import typer
from onbrand.configs import config_of
from onbrand.configs.schema import Config
from onbrand.train.launch import frozen_dtype, start_accelerator
from onbrand.train.loop import train
from onbrand.train.metrics import peak_memory
from onbrand.train.models import prepare_networks
from onbrand.train.prepare import latents_folder, prepare, split_catalogue
from onbrand.train.start import offset_start
from onbrand.train.text_cache import texts_of
from onbrand.train.training import set_up
from plain_loop import ENCODING, NETWORK, SD15, PlainLoop, Stopwatch, build_pipeline
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

PICTURES = 128
PEAK = Path("/proc/self/clear_refs")  # "5" written there forgets the peak of the resident memory


class Measured(Exception):
    """Ends our loop when the last block is done, before it saves."""


def our_loop(config: Config, between: Callable[[], None]) -> None:
    """Our whole loop; `between` is called before the first step and after every train.preview_every."""
    run = Path(config.run.dir)
    accelerator = start_accelerator(config)
    pipeline = build_pipeline(config, accelerator.device)
    t_min = offset_start(pipeline, config.start)
    networks = prepare_networks(pipeline, config.model, weight_dtype=frozen_dtype(accelerator))
    cache_dir = latents_folder(config.data, run)
    prepared = prepare(
        config, pipeline, parts=split_catalogue(config), t_min=t_min, cache_dir=cache_dir,
        device=str(accelerator.device),
    )  # fmt: skip
    for network in networks.denoiser.networks:
        network.to(accelerator.device)
    texts = texts_of(pipeline, prepared.train.catalogue.captions, cached=True, cache_dir=cache_dir)
    training = set_up(config, networks, accelerator, run=run)
    with suppress(Measured):
        train(config, training, prepared, texts, run=run, preview=lambda step: between())


def take_turns(
    config: Config, *, blocks: int, fused: bool
) -> tuple[list[float], list[float], list[dict[str, float]]]:
    """Seconds of each block of ours and of the plain one, the latter by part too; without the first."""
    plain, steps = PlainLoop(config, fused=fused), config.train.preview_every
    on_gpu = plain.accelerator.device.type == "cuda"
    moments: list[tuple[float, float]] = []
    parts: list[dict[str, float]] = []

    def now() -> float:
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def between() -> None:
        arrived = now()
        parts.append(plain.block(steps))
        moments.append((arrived, now()))
        if len(moments) == blocks + 2:
            raise Measured

    our_loop(config, between)
    ours = [arrived - left for (_, left), (arrived, _) in pairwise(moments[1:])]
    return ours, [left - arrived for arrived, left in moments[2:]], parts[2:]


def measure_memory(config: Config, which: str) -> int:
    """Peak bytes of a block of one loop, all it holds included but not how it was loaded."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    calls = 0

    def between() -> None:
        nonlocal calls
        calls += 1
        if calls == 2 and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        elif calls == 2 and PEAK.exists():
            PEAK.write_text("5")
        elif calls == 3:
            raise Measured

    if which == "ours":
        our_loop(config, between)
    else:
        plain = PlainLoop(config)
        with suppress(Measured):
            while True:
                between()
                plain.block(config.train.preview_every)
    if device.type == "cpu" and PEAK.exists():
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return peak_memory(device)


def matrix_rate(device: torch.device) -> float:
    """FLOP/s of a large matrix product: bfloat16 on a GPU, float32 on a CPU."""
    on_gpu = device.type == "cuda"
    side = 8192 if on_gpu else 2048
    one = torch.randn(side, side, device=device, dtype=torch.bfloat16 if on_gpu else torch.float32)
    seconds = []
    for _ in range(20):
        watch = Stopwatch(device)
        watch.done("before")
        one @ one
        watch.done("product")
        seconds.append(watch.seconds()["product"])
    return 2 * side**3 / min(seconds)


def unet_flops(config: Config, device: torch.device) -> int:
    """FLOPs of the UNet in a step: a forward is counted, backward taken as twice that, for LoRA as once."""
    pipeline = build_pipeline(config, device)
    unet, side = pipeline.unet.to(device), config.data.resolution // pipeline.vae_scale_factor
    text = torch.zeros(1, pipeline.tokenizer.model_max_length, unet.config.cross_attention_dim, device=device)
    latents = torch.zeros(1, unet.config.in_channels, side, side, device=device)
    # spelled out: the counter does not know every fused attention
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        unet(latents, torch.zeros(1, device=device), text)
    return (3 if config.model.method == "full" else 2) * config.train.batch_size * counter.get_total_flops()


def main(
    base: Annotated[str, typer.Option(help=f"tiny-base, a path, or {SD15}: random weights")] = "tiny-base",
    method: Annotated[str, typer.Option(help="full or lora")] = "full",
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    resolution: Annotated[int, typer.Option(min=8)] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Of a block")] = 10,
    blocks: Annotated[int, typer.Option(min=2, help="Of each loop, after one that is left out")] = 7,
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16")] = "no",
    workers: Annotated[int, typer.Option(min=0, help="Of each loop's loader")] = 0,
    gradient_checkpointing: Annotated[bool, typer.Option("--gradient-checkpointing", help="In both")] = False,
    channels_last: Annotated[bool, typer.Option("--channels-last", help="In ours alone")] = False,
    compile: Annotated[bool, typer.Option("--compile", help="In ours alone")] = False,
    fused: Annotated[bool, typer.Option("--fused", help="AdamW of the plain loop fused, as ours is")] = False,
    memory_of: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Pictures per second and peak memory of the training loop and of a plain one."""
    total = (blocks + 2) * steps
    train_options = {
        "steps": total, "batch_size": batch_size, "mixed_precision": precision,
        "gradient_checkpointing": gradient_checkpointing, "channels_last": channels_last, "compile": compile,
        "workers": workers, "preview_every": steps, "checkpoint_every": total, "validate_every": total,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(
            [],
            model={"base": base, "method": method},
            data={"resolution": resolution, "studio": {"pictures": PICTURES}},
            train=train_options,
            run={"dir": str(Path(folder) / "run")},
        )
        Path(config.run.dir).mkdir()
        if memory_of:
            print(json.dumps(measure_memory(config, memory_of)))
            return
        memory = {which: _memory_in_own_process(which) for which in ("plain", "ours")}
        loads = [os.getloadavg()[0]]
        ours, plain, parts = take_turns(config, blocks=blocks, fused=fused)
        loads.append(os.getloadavg()[0])
    table = _table(config, ours, plain, parts, memory)
    table.title = f"{base} at {resolution} px, {method}, batch {batch_size}, precision {precision}" + "".join(
        f", {name}" for name in ("channels_last", "compile", "gradient_checkpointing") if train_options[name]
    )
    table.title += ", plain loop's AdamW fused" if fused else ""
    table.caption = (
        f"{blocks} blocks of {steps} steps each; {_device_name()}; {os.cpu_count()} CPU cores, load "
        f"{loads[0]:.1f} before, {loads[1]:.1f} after"
    )
    Console().print(table)


def _memory_in_own_process(which: str) -> int:
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", which]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return int(json.loads(done.stdout.splitlines()[-1]))


def _device_name() -> str:
    gpu = torch.cuda.is_available()
    return torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"


def _table(
    config: Config,
    ours: list[float],
    plain: list[float],
    parts: list[dict[str, float]],
    memory: dict[str, int],
) -> Table:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps, batch_size = config.train.preview_every, config.train.batch_size
    flops, rate = unet_flops(config, device), matrix_rate(device)
    table = Table(show_header=True)
    for name in ("", "plain loop", "ours"):
        table.add_column(name, justify="right" if name else "left")
    both = {"plain": [1000 * s / steps for s in plain], "ours": [1000 * s / steps for s in ours]}
    step = {which: statistics.median(times) for which, times in both.items()}
    rows: dict[str, Callable[[str], str]] = {
        "step, ms": lambda which: f"{step[which]:.1f}",
        "blocks, ms a step": lambda which: f"{min(both[which]):.1f} to {max(both[which]):.1f}",
        "images / s": lambda which: f"{1000 * batch_size / step[which]:.2f}",
        "peak memory, MiB": lambda which: f"{memory[which] / 2**20:.0f}",
        f"of {rate / 1e12:.3g} TFLOP/s": lambda which: f"{1000 * flops / step[which] / rate:.1%}",
    }
    for name, cell in rows.items():
        table.add_row(name, cell("plain"), cell("ours"))
    table.add_section()
    median = {part: statistics.median(1000 * block[part] / steps for block in parts) for part in parts[0]}
    for part, value in median.items():
        table.add_row(f"{part}, ms", f"{value:.1f}", "")
    table.add_section()
    ratios = [p / o for p, o in zip(plain, ours, strict=True)]
    ceiling = 1 + sum(median[part] for part in ENCODING) / sum(median[part] for part in NETWORK)
    ratio = statistics.median(ratios)
    table.add_row("ours / plain, images", "", f"{ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    table.add_row("ceiling of caching", "", f"{ceiling:.3f}")
    table.add_row("reached", "", f"{ratio / ceiling:.1%}")
    return table


if __name__ == "__main__":
    typer.run(main)

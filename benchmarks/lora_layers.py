"""What the layers of a LoRA cost a training step: `python benchmarks/lora_layers.py [STEPS]`

The tiny base's UNet takes its steps (forward, backward, AdamW) in turn as a LoRA of rank 16 on the attention,
as one on all layers, and with all weights trained; prints the median seconds and the median ratio to the
first.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from onbrand.configs.schema import LoraConfig, ModelConfig
from onbrand.train.models import load_base, prepare_networks
from rich.console import Console
from rich.table import Table

BATCH, TOKENS = 32, 32
WAYS = {
    "LoRA on the attention": ModelConfig(method="lora"),
    "LoRA on all layers": ModelConfig(method="lora", lora=LoraConfig(targets=["all"])),
    "all weights": ModelConfig(method="full"),
}


def main(steps: int) -> None:
    ways = {name: stepper(config) for name, config in WAYS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(steps + 1):
        for name, step in ways.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    threads = torch.get_num_threads()
    table = Table(title=f"A step of the tiny base, batch {BATCH}, {threads} thread(s), {steps} in turn")
    for heading in ("trained", "seconds", "ratio"):
        table.add_column(heading, justify="right" if heading != "trained" else "left")
    first = next(iter(seconds.values()))[1:]
    for name, (_, *own) in seconds.items():
        ratio = statistics.median(mine / other for mine, other in zip(own, first, strict=True))
        table.add_row(name, f"{statistics.median(own):.2f}", f"{ratio:.2f}")
    Console().print(table)


def stepper(config: ModelConfig) -> Callable[[], None]:
    """One training step of the UNet in channels-last, on the same noise every time."""
    unet = prepare_networks(load_base(config), config).pipeline.unet.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], fused=True)
    noise = torch.Generator().manual_seed(0)
    side, channels, width = unet.config.sample_size, unet.config.in_channels, unet.config.cross_attention_dim
    x = torch.randn(BATCH, channels, side, side, generator=noise).to(memory_format=torch.channels_last)
    text = torch.randn(BATCH, TOKENS, width, generator=noise)
    timesteps = torch.randint(0, 1000, (BATCH,), generator=noise)

    def step() -> None:
        unet(x, timesteps, text).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)

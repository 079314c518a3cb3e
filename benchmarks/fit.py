"""Fitting the start distribution from disk: `python benchmarks/fit.py [--pictures 20000] [--folder DIR]`

Writes made-up latents as safetensors shards: in each class a mean, directions of falling variance and noise.
Ours reads them from disk, as does scikit-learn's IncrementalPCA, class by class; scikit-learn's randomized
PCA is given one class at a time in memory. Each runs in a process of its own, after the system was asked to
forget the files. The angle is the largest between the leading axes and the exact ones (float64, from the
products of all pairs of pictures) of the first and the last class.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from onbrand.data.shards import ShardRows, read_entries, write_shard
from onbrand.pca import Statistics, fit_statistics
from onbrand.pca.krylov import EXTRA
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA, IncrementalPCA

SHARD, DIRECTIONS, NOISE = 250, 64, 0.3
READ = 64  # pictures at a time: what is larger comes from the system anew each time, page by page


class Pictures:
    """Pictures on disk, class by class."""

    def __init__(self, folder: Path) -> None:
        entries = read_entries(folder)
        keys = sorted(entries)
        self.shards = ShardRows([entries[key] for key in keys])
        self.class_ids = torch.tensor([int(key.split("-")[1]) for key in keys])
        self.classes = [str(c) for c in range(int(self.class_ids.max()) + 1)]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return self.of(range(len(self.classes)))

    def of(self, classes: Sequence[int]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for c in classes:
            for rows in (self.class_ids == c).nonzero()[:, 0].split(READ):
                yield self.shards.gather("mean", rows), self.class_ids[rows]

    def rows(self, c: int, size: int) -> Iterator[np.ndarray]:
        """(size or up to twice that, d), so that each has as many pictures as there are components."""
        places = (self.class_ids == c).nonzero()[:, 0]
        for some in places.tensor_split(max(1, len(places) // size)):
            yield self.shards.gather("mean", some).flatten(1).numpy()

    def whole(self, c: int) -> np.ndarray:
        [rows] = self.rows(c, len(self.class_ids))
        return rows


def write_pictures(folder: Path, pictures: int, classes: int, shape: Sequence[int]) -> None:
    """Variances fall as i^-1.5 from 15 % of the values; every class's pictures are in all shards."""
    d = int(np.prod(shape))
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(classes, d, generator=generator)
    turns = [torch.linalg.qr(torch.randn(d, DIRECTIONS, generator=generator)).Q for _ in range(classes)]
    spread = (0.15 * d * torch.arange(1, DIRECTIONS + 1).float() ** -1.5).sqrt()
    for first in range(0, pictures, SHARD):
        rows = {}
        for i in range(first, min(first + SHARD, pictures)):
            c = i % classes
            scores = torch.randn(DIRECTIONS, generator=generator) * spread
            x = means[c] + turns[c] @ scores + NOISE**0.5 * torch.randn(d, generator=generator)
            rows[f"{i:08d}-{c}"] = {"mean": x.view(*shape)}
        write_shard(folder, rows)


def forget(folder: Path) -> None:
    """Asks the system to drop its copy of the files, so that the next reader goes to the disk."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.glob("*.safetensors"):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


class PeakMemory(threading.Thread):
    """The largest anonymous resident memory of this process, in bytes: mapped files are not counted."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0

    def run(self) -> None:
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            anonymous = [int(line.split()[1]) for line in lines if line.startswith("RssAnon")]
            self.peak = max(self.peak, 1024 * sum(anonymous))
            time.sleep(0.05)


def run_one(method: str, folder: Path, components: int, reserve: int) -> None:
    """Fits all classes, writes the axes into the folder and prints seconds and bytes."""
    memory = PeakMemory()
    memory.start()
    began = time.perf_counter()
    pictures, axes = Pictures(folder / "shards"), []
    if method == "ours":
        statistics: Statistics = fit_statistics(
            pictures, class_names=pictures.classes, components=components, reserve=reserve
        )
        axes = list(statistics.axes[:, :components])
    for c in range(len(pictures.classes) if method != "ours" else 0):
        if method.startswith("incremental"):
            fitted = IncrementalPCA(components)
            for rows in pictures.rows(c, int(method.split("-")[1])):
                fitted.partial_fit(rows)
        else:
            fitted = PCA(components, svd_solver="randomized", random_state=0).fit(pictures.whole(c))
        axes.append(torch.from_numpy(fitted.components_.copy()).float())
    seconds = time.perf_counter() - began
    save_file({"axes": torch.stack(axes)}, folder / f"{method}.safetensors")
    print(json.dumps({"seconds": seconds, "bytes": memory.peak}))


def exact_axes(pictures: Pictures, c: int, components: int) -> np.ndarray:
    """(d, components) float64."""
    rows = pictures.whole(c).astype(np.float64)
    rows -= rows.mean(axis=0)
    return np.linalg.qr(rows.T @ np.linalg.eigh(rows @ rows.T)[1][:, -components:])[0]


def rates(folder: Path, width: int) -> dict[str, float]:
    """Bytes a second from disk and of moments; FLOP/s of block products and of float64 ones."""
    pictures = Pictures(folder / "shards")
    began = time.perf_counter()
    read = sum(x.numel() * x.element_size() for x, _ in pictures)
    found = {"disk": read / (time.perf_counter() - began)}
    rows = pictures.shards.gather("mean", torch.arange(min(READ, len(pictures.shards)))).flatten(1)
    block, n, d = torch.randn(rows.shape[1], width), *rows.shape
    began = time.perf_counter()
    fit_statistics([(rows[:, :, None, None], torch.zeros(n).long())] * 8, class_names=["one"])
    found["moments"] = 8 * rows.numel() * 4 / (time.perf_counter() - began)
    for name, run, flops in (
        ("block", lambda: rows.T @ (rows @ block), 4 * n * d * width),
        ("gram", lambda: rows.double() @ rows.double().T, 2 * n * n * d),
    ):
        run()
        began = time.perf_counter()
        for _ in range(10):
            run()
        found[name] = 10 * flops / (time.perf_counter() - began)
    return found


def main(
    pictures: Annotated[int, typer.Option(min=4)] = 20_000,
    classes: Annotated[int, typer.Option(min=1)] = 10,
    channels: Annotated[int, typer.Option(min=1)] = 4,
    side: Annotated[int, typer.Option(min=1)] = 64,
    components: Annotated[int, typer.Option(min=1)] = 16,
    reserve: Annotated[int, typer.Option(min=0, help="Further axes, in ours alone")] = 0,
    batch: Annotated[list[int] | None, typer.Option(min=2, help="Of IncrementalPCA; repeatable")] = None,
    folder: Annotated[Path | None, typer.Option(help="For the pictures; kept if given")] = None,
    only: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Seconds, memory and accuracy of fitting, beside scikit-learn's."""
    if only and folder:
        run_one(only, folder, components, reserve)
        return
    methods = {"ours": "onbrand, from disk"}
    methods |= {
        f"incremental-{size}": f"IncrementalPCA, from disk, batches of {size}"
        for size in batch or (256, 1000)
    }
    methods["randomized"] = "randomized PCA, a class in memory"
    with tempfile.TemporaryDirectory() if folder is None else nullcontext(str(folder)) as place:
        root = Path(place)
        shape, shards = (channels, side, side), root / "shards"
        told = json.dumps([pictures, classes, *shape])
        if not (root / "written.json").exists() or (root / "written.json").read_text() != told:
            shutil.rmtree(shards, ignore_errors=True)
            write_pictures(shards, pictures, classes, shape)
            (root / "written.json").write_text(told)
        loads = [os.getloadavg()[0]]
        found = {method: _in_own_process(method, root) for method in methods}
        loads.append(os.getloadavg()[0])
        forget(shards)
        measured = rates(root, components + reserve + EXTRA)
        source, checked = Pictures(shards), sorted({0, classes - 1})
        exact = {c: exact_axes(source, c, components) for c in checked}
        angles = {method: _largest_angle(root / f"{method}.safetensors", exact) for method in methods}
    table = Table(
        title=f"{pictures:,} pictures of {channels}x{side}x{side} latents in {classes} classes, "
        f"K = {components}, {reserve} more in ours"
    )
    for name in ("", "seconds", "times ours", "peak memory, MiB", "largest angle"):
        table.add_column(name, justify="right" if name else "left")
    for method, title in methods.items():
        seconds = found[method]["seconds"]
        times, memory = seconds / found["ours"]["seconds"], found[method]["bytes"] / 2**20
        table.add_row(title, f"{seconds:.1f}", f"{times:.1f}", f"{memory:.0f}", f"{angles[method]:.1e}")
    table.caption = (
        f"angles in classes {', '.join(map(str, checked))}, radians; "
        f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads, load {loads[0]:.1f} before, "
        f"{loads[1]:.1f} after. Alone: disk {measured['disk'] / 1e6:.0f} MB/s, moments "
        f"{measured['moments'] / 1e6:.0f} MB/s, block products {measured['block'] / 1e9:.0f} GFLOP/s, "
        f"float64 products {measured['gram'] / 1e9:.0f} GFLOP/s"
    )
    Console().print(table)


def _in_own_process(method: str, root: Path) -> dict[str, float]:
    forget(root / "shards")
    command = [sys.executable, __file__, *sys.argv[1:], "--folder", str(root), "--only", method]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _largest_angle(file: Path, exact: dict[int, np.ndarray]) -> float:
    axes = load_file(file)["axes"].double().numpy()
    return max(float(subspace_angles(axes[c].T, basis).max()) for c, basis in exact.items())


if __name__ == "__main__":
    typer.run(main)

"""Does all of it on the CPU, then on a simulated accelerator: `python tests/devices/scenarios.py WORK`

Prints a line of JSON a scenario: its name, and `problem`: "" where both give the same. --all after WORK: more
trainings, a minute each.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from accelerate.state import AcceleratorState, PartialState
from onbrand import load_pipeline
from onbrand.__main__ import app
from onbrand.configs import config_of
from onbrand.evaluation.gallery_rewards import ssim_diversity
from onbrand.inference import OffsetStableDiffusionImg2ImgPipeline, OffsetStableDiffusionInpaintPipeline
from onbrand.inference.closed_form import OptimalDenoiser
from onbrand.inference.inverse_problems import Downsample, solve
from onbrand.inference.inversion import invert
from onbrand.inference.noise_optimisation import optimise_noise
from onbrand.inference.tickets.layouts import Layout
from onbrand.train.coupling import learn_coupling
from onbrand.train.metrics import read_metrics
from onbrand.train.run import run_training
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

HERE = Path(__file__).parent
LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
SIDE, SHAPE = 64, (4, 16, 16)  # pixels, latents
CLOSE, CLOSE_PIXELS = 4e-3, 3  # attention goes by another kernel there, and Adam takes whole steps at once
Scenario = Callable[[Path, str], Any]
AUDIT = ("run.audit.pictures=1", "run.audit.steps=4")
TINY: Any = None
WORK = Path()


def module(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def training(base: str, *overrides: str) -> Scenario:
    """A run of two steps that is stopped after the first and resumed."""

    def run(out: Path, device: str) -> dict[str, Any]:
        config = config_of([
            f"model.base={WORK / base}", f"run.dir={out / 'run'}", f"data.cache_dir={out / 'latents'}",
            "data.studio.pictures=64", "data.held_out=0.1", "train.batch_size=4", "train.learning_rate=0.001",
            "train.ema_decay=0.9", "train.log_every=1", "train.checkpoint_every=1", "train.preview_every=2",
            "train.validate_every=2", "train.steps=2", *AUDIT,
            *overrides,
        ])  # fmt: skip
        folder = run_training(config, console=Console(quiet=True))
        for name in ("audit.json", "model/README.md", "checkpoints/step_2/manifest.json"):
            (folder / name).unlink()
        (folder / "model").rename(folder / "first")
        run_training(config, console=Console(quiet=True))
        names = [path.relative_to(folder) for path in sorted(folder.glob("model/*/*.safetensors"))]
        weights = {str(name): load_file(folder / name) for name in names}
        flat = {f"{name} {key}": value for name, held in weights.items() for key, value in held.items()}
        losses = {f"{key} {row['step']}": value for row in read_metrics(folder) for key, value in row.items()
                  if key.startswith(("loss", "held_out", "grad_norm"))}  # fmt: skip
        return flat | losses

    return run


def command(*arguments: Any) -> Scenario:
    """A command of the command line; what it writes: pictures, latents, tables."""

    def run(out: Path, device: str) -> dict[str, Any]:
        there_alone = ("--offload",) if device == "cpu" else ()
        told = [str(each).format(first=out.parent) for each in arguments if each not in there_alone]
        result = CliRunner().invoke(app, [*told, "-o", str(out)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        pictures = {str(file.relative_to(out)): np.asarray(Image.open(file)) for file in out.rglob("*.png")}
        tensors = {
            str(file.relative_to(out)): load_file(file)
            for file in out.rglob("*.safetensors")
            if not file.name.startswith("statistics")
        }  # whose axes beyond the rank are any
        flat = {f"{name} {key}": value for name, held in tensors.items() for key, value in held.items()}
        assert pictures
        return pictures | flat

    return run


def sample(*options: Any, prompt: str = "a red mug") -> Scenario:
    how = ("--class", "mug", "--steps", 3, "--dtype", "float32", "--count", 2)
    return command("sample", WORK / "model", prompt, *how, *options)


def fit(*overrides: str) -> Scenario:
    """A base with a start distribution of its own."""
    of = ("photo-studio", "--into", WORK / "base", "data.studio.pictures=40", f"data.resolution={SIDE}")
    return command("fit", *of, *AUDIT, *overrides)


def pipeline(device: str) -> Any:
    found = load_pipeline(WORK / "model").to(device)
    found.set_progress_bar_config(disable=True)
    return found


def of_pipeline(call: Callable[[Any], Any]) -> Scenario:
    return lambda out, device: {"result": call(pipeline(device))}


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


def mask() -> Image.Image:
    return Image.fromarray(np.kron(np.eye(2), np.ones((SIDE // 2, SIDE // 2))).astype(np.uint8) * 255)


def drawn(pipe: Any, *arguments: Any, **call: Any) -> np.ndarray:
    how = {"num_inference_steps": 4, "class_name": "mug", "generator": torch.Generator().manual_seed(3)}
    return np.stack([np.asarray(each) for each in pipe(*arguments, **(how | call)).images])


def closed_form(pipe: Any) -> np.ndarray:
    latents = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(1))
    device = pipe.device
    pipe.unet = OptimalDenoiser(
        [(latents, torch.arange(6) % 2)], pipe.scheduler, start=pipe.start_distribution
    ).to(device)
    return drawn(pipe, "a mug")


def scenarios() -> dict[str, Scenario]:
    layout = ("--layout", WORK / "layout.json", "--tickets", "{first}/tickets")
    both = "a mug and a hat"
    return {
        "train, LoRA on all layers and text, pooled start": training(
            "v", "model.method=lora", "model.lora.targets=[all]", "model.text_encoder=lora",
            "train.min_snr_gamma=5", "train.channels_last=true", "start.family=pooled"),
        "mean": sample("--trace"),
        "draw": sample("--start", "draw", "--scheduler", "dpm++"),
        "pure noise": sample("--start", "none", "--scheduler", "euler"),
        "offload": sample("--offload", "--scheduler", "unipc"),
        "start image": sample("--start-image", WORK / "picture.png", "--project"),
        "repulsive": sample("--coupling", "repulsive"),
        "contrastive": sample("--contrastive", 2),
        "new backgrounds": sample("--background-of", WORK / "picture.png", "--mask", WORK / "mask.png",
                                  "--optimisation-steps", 2),
        "aggregation": sample("--aggregate", f"{WORK / 'other'}:0.5"),
        "tickets": command("tickets", WORK / "model", "--concepts", "mug, hat", "--noises", 4, "--steps", 2,
                           "--layer", LAYER, "--class", "mug"),
        "layout": sample(*layout, "--guide", "soft", prompt=both),
        "layout, painted": sample(*layout, "--guide", "paint", prompt=both),
        "fit into": fit(),
        "image to image": of_pipeline(lambda pipe: drawn(
            OffsetStableDiffusionImg2ImgPipeline.from_pipe(pipe), "a mug", image=picture(), strength=1.0)),
        "inpainting": of_pipeline(lambda pipe: drawn(
            OffsetStableDiffusionInpaintPipeline.from_pipe(pipe), "a mug", image=picture(), mask_image=mask(),
            strength=1.0, height=SIDE, width=SIDE)),
        "inversion": of_pipeline(lambda pipe: invert(
            pipe, picture(), prompt="a mug", class_name="mug", refinements=1).eps),
        "inverse problem": of_pipeline(lambda pipe: solve(
            pipe, torch.zeros(1, 3, SIDE // 4, SIDE // 4), Downsample(4), prompt="a mug", class_name="mug",
            steps=4).latents),
        "noise optimisation": of_pipeline(lambda pipe: optimise_noise(
            pipe, "a mug", torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(2)),
            ssim_diversity, steps=1, class_name="mug")),
        "learned coupling": of_pipeline(lambda pipe: learn_coupling(
            pipe, ["a mug"], ssim_diversity, images=2, steps=2, class_names=["mug"]).matrix),
        "closed form": of_pipeline(closed_form),
    }  # fmt: skip


def long_scenarios() -> dict[str, Scenario]:
    return {
        "train, all weights and the text encoder, gradients checkpointed, channels last": training(
            "base", "model.text_encoder=full", "train.gradient_checkpointing=true",
            "train.channels_last=true", "start.components=1"),
        "train, XL, ControlNet, start by the text": training(
            "xl", "model.method=frozen", "model.controlnet={condition: segment}", "start.family=text",
            "start.components=1"),
    }  # fmt: skip


def prepare() -> None:
    """What all scenarios draw with: bases, two models with a start distribution, pictures, a layout."""
    TINY.save_base(WORK / "base")
    TINY.save_v_base(WORK / "v")
    TINY.save_xl_base(WORK / "xl")
    for name, seed in (("model", 0), ("other", 1)):
        fit(f"run.seed={seed}")(WORK / name, "cpu")
    picture().save(WORK / "picture.png")
    mask().save(WORK / "mask.png")
    Layout((("mug", (0, 0, 0.5, 1)), ("hat", (0.5, 0, 1, 0.75)))).save(WORK / "layout.json")


def done(
    asked: Mapping[str, Scenario], device: str, *, during: Callable[[], AbstractContextManager[Any]]
) -> dict[str, Any]:
    """Each scenario's result on a device, or what went wrong."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = device
    results: dict[str, Any] = {}
    folder = WORK / device.partition(":")[0]
    for name, run in asked.items():
        AcceleratorState._reset_state(reset_partial_state=True)
        PartialState._reset_state()
        try:
            with during():
                results[name] = run(folder / name.replace(" ", "_"), device)
        except Exception:
            results[name] = traceback.format_exc()
    return results


def difference(first: Any, second: Any) -> str:
    """What differs, "" if nothing does."""
    if isinstance(first, str) or isinstance(second, str):
        return "".join(said for said in (first, second) if isinstance(said, str))
    if first.keys() != second.keys():
        return f"only one wrote {sorted(first.keys() ^ second.keys())}"
    for key, value in first.items():
        ours, theirs = (torch.as_tensor(np.asarray(torch.as_tensor(v).cpu())) for v in (value, second[key]))
        if ours.shape != theirs.shape:
            return f"{key}: {tuple(ours.shape)}, {tuple(theirs.shape)}"
        within = (0, CLOSE_PIXELS) if ours.dtype == torch.uint8 else (CLOSE, CLOSE)  # relative, absolute
        if not torch.allclose(ours.double(), theirs.double(), *within, equal_nan=True):
            return f"{key}: off by {(ours.double() - theirs.double()).abs().max():.3g}"
    return ""


def main(*work: str) -> None:
    global TINY, WORK
    warnings.filterwarnings("ignore")
    TINY, WORK = module(HERE.parent / "tiny.py"), Path(work[0])
    elsewhere = module(HERE / "elsewhere.py")  # first: autograd looks for devices once
    with patch("torch.accelerator.is_available", return_value=False):
        prepare()
        asked = scenarios() | (long_scenarios() if "--all" in work else {})
        here = done(asked, "cpu", during=nullcontext)
    there = done(asked, f"{elsewhere.NAME}:0", during=elsewhere.Computing)
    for name in here:
        print(json.dumps({"name": name, "problem": difference(here[name], there[name])}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

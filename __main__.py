"""The command line: parses, calls one function of `commands`, prints errors as one line."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Fine-tune Stable Diffusion on a product catalogue and keep the catalogue's look.",
)

# the panels of `onbrand sample --help`
from_where, other_models, gallery, machine = (
    partial(typer.Option, rich_help_panel=panel)
    for panel in ("From where", "Other models", "Galleries and layouts", "Machine")
)

Steps = Annotated[int, typer.Option(min=1, help="Sampling steps")]
Guidance = Annotated[float, typer.Option(min=0, help="Classifier-free guidance scale")]


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="The config file to write")] = Path("onbrand.yaml"),
    recipe: Annotated[str, typer.Option(help="The shipped recipe to start from")] = "sd15",
) -> None:
    """Write a commented starter config."""
    from .commands.init import init

    command = init(path, recipe=recipe)
    typer.echo(f"wrote {path}\nnext  {command} --dry-run")


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="A YAML file or the name of a shipped recipe")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the plan, train nothing")
    ] = False,
) -> None:
    """Catalogue in, on-brand checkpoint out. The same command again resumes the run."""
    from .commands.train import train

    train(config, overrides or [], dry_run=dry_run)


@app.command()
def fit(
    what: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG|CATALOGUE",
            help="A config or recipe; photo-studio, a folder, parquet files, a hub id",
        ),
    ],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...")] = None,
    into: Annotated[
        str | None, typer.Option(help="A checkpoint: write a copy that starts from it, with audits")
    ] = None,
    add_to: Annotated[
        Path | None, typer.Option(help="An earlier fit: add these pictures, which it must not hold yet")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The folder to write; default: runs/<name>_fit")
    ] = None,
) -> None:
    """Fit the start distribution without training: how strongly the base leaks, which pictures are odd."""
    from .commands.fit import fit

    fit(what, into=into, add_to=add_to, output=output, overrides=overrides or [])


@app.command()
def sample(
    checkpoint: Annotated[
        str, typer.Argument(help="A run's model folder, any diffusers folder, file or hub id")
    ],
    prompts: Annotated[
        list[str],
        typer.Argument(
            help="A gallery each; @FILE: a prompt a line, or .jsonl or .csv rows with prompt, class, seed, "
            "negative_prompt"
        ),
    ],
    class_name: Annotated[str | None, from_where("--class", help="The class to start from")] = None,
    count: Annotated[int, typer.Option(min=1, help="Pictures a prompt")] = 4,
    scheduler: Annotated[
        str,
        typer.Option(help="ddim, dpm++, dpm++-karras, euler, euler-a, unipc, ... or a class of diffusers"),
    ] = "ddim",
    spacing: Annotated[
        str | None, typer.Option(help="leading, trailing or linspace; default: the checkpoint's")
    ] = None,
    steps: Steps = 20,
    guidance: Annotated[
        float | None,
        typer.Option(min=0, help="How much the prompt counts; default: 3, with --background-of 1"),
    ] = None,
    negative: Annotated[str | None, typer.Option(help="What not to draw")] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Of the first picture; then one more each")
    ] = 0,
    size: Annotated[
        tuple[int, int] | None, from_where(metavar="HEIGHT WIDTH", help="Pixels; default: the checkpoint's")
    ] = None,
    start: Annotated[
        str | None, from_where(help="mean, draw, or none for pure noise; default: what training drew from")
    ] = None,
    start_image: Annotated[Path | None, from_where(help="Start from this picture instead")] = None,
    project: Annotated[
        bool, from_where("--project", help="Start from the nearest that the class's components make of it")
    ] = False,
    condition: Annotated[Path | None, other_models(help="A ControlNet's condition picture")] = None,
    lora: Annotated[Path | None, other_models(help="A LoRA file or folder to add")] = None,
    lora_strength: Annotated[float, other_models(help="How much of it")] = 1.0,
    coupling: Annotated[
        str | None,
        gallery(help="Of a gallery: repulsive, identical, antithetic, rho=-0.2, or a learned file"),
    ] = None,
    contrastive: Annotated[
        int, gallery(min=0, help="Steps by which a gallery's noises are pushed apart first")
    ] = 0,
    layout: Annotated[
        Path | None, gallery(help="A JSON file that says which word of the prompt stands where")
    ] = None,
    tickets: Annotated[Path | None, gallery(help="Winning tickets, of onbrand tickets")] = None,
    guide: Annotated[
        list[str] | None, gallery(help="soft, paint or swap, besides or instead; may be repeated")
    ] = None,
    aggregate: Annotated[
        list[str] | None,
        other_models(metavar="CHECKPOINT:WEIGHT", help="Draw the first steps with this model too (AMDM)"),
    ] = None,
    aggregate_steps: Annotated[
        int | None, other_models(min=1, help="How many steps they share; default: 3")
    ] = None,
    background_of: Annotated[
        Path | None, gallery(help="Keep this picture's object and draw new scenes around it")
    ] = None,
    mask: Annotated[
        Path | None, gallery(help="Where that object is, in white; default: found by its backdrop")
    ] = None,
    optimisation_steps: Annotated[
        int | None, gallery(min=0, help="That keep the object, more are truer; default: 50")
    ] = None,
    dtype: Annotated[
        str | None,
        machine(help="float32, float16 or bfloat16; default: float16 on an accelerator, else float32"),
    ] = None,
    offload: Annotated[
        bool, machine("--offload", help="Keep on the accelerator only the model that is at work")
    ] = False,
    trace: Annotated[
        bool, typer.Option("--trace", help="Draw trace.png: the first picture at every step")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The folder to write; default: samples, samples-2, ..."),
    ] = None,
) -> None:
    """Draw pictures: PNGs that carry their recipe, and a contact sheet."""
    from .commands.prompts import read_galleries
    from .commands.request import Request, read_aggregate
    from .commands.sample import sample

    galleries = read_galleries(prompts, count=count, class_name=class_name, negative=negative, seed=seed)
    if guidance is None:
        guidance = 3.0 if background_of is None else 1.0
    request = Request(
        checkpoint, galleries, count, start=start, start_image=start_image, project=project,
        condition=condition, lora=lora, lora_strength=lora_strength, size=size,
        scheduler=scheduler, spacing=spacing, steps=steps, guidance=guidance, dtype=dtype, offload=offload,
        coupling=coupling, contrastive=contrastive,
        background_of=background_of, mask=mask, optimisation_steps=optimisation_steps,
        layout=layout, tickets=tickets, guides=tuple(guide or ()),
        aggregate=read_aggregate(aggregate or []), aggregate_steps=aggregate_steps,
    )  # fmt: skip
    sample(request, output=output, trace=trace)


@app.command()
def tickets(
    checkpoint: Annotated[str, typer.Argument(help="A run, any diffusers folder, file or hub id")],
    concepts: Annotated[str, typer.Option(help="At least two, with commas between: mug,bottle")],
    noises: Annotated[int, typer.Option(min=1, help="How many are looked through")] = 100,
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to write or extend")] = Path(
        "tickets"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of the first noise; then one more each")] = 0,
    class_name: Annotated[str | None, typer.Option("--class", help="The class to start from")] = None,
    start: Annotated[str | None, typer.Option(help="mean, or none for pure noise")] = None,
    steps: Steps = 50,
    both_orders: Annotated[
        bool, typer.Option("--both-orders", help="Score each pair in both orders of words: twice the time")
    ] = False,
    layer: Annotated[
        str | None, typer.Option(help="The cross-attention layer; default: found at 1/4 of the latents")
    ] = None,
) -> None:
    """Collect winning tickets: blocks of noise that become a concept wherever they stand."""
    from .commands.tickets import tickets

    names = [name.strip() for name in concepts.split(",") if name.strip()]
    tickets(
        checkpoint, concepts=names, noises=noises, output=output, seed=seed, layer=layer,
        both_orders=both_orders, class_name=class_name, start=start, steps=steps,
    )  # fmt: skip


@app.command()
def audit(
    subject: Annotated[str, typer.Argument(help="A checkpoint, or a folder of pictures")],
    against: Annotated[str, typer.Option(help="The catalogue that sets the limits")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...")] = None,
    start: Annotated[str, typer.Option(help="For a checkpoint: mean, draw, or none for pure noise")] = "mean",
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to write")] = Path("audit"),
    min_pass: Annotated[float, typer.Option(help="Exit with 1 below this pass rate, 0 to 1")] = 0.0,
    descriptor: Annotated[
        str | None,
        typer.Option(help="Tells kinds of pictures apart: an SSCD file, or a CLIP folder or hub id"),
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help="A CLIP folder or hub id: do pictures show what their captions say?")
    ] = None,
) -> None:
    """Which pictures keep the catalogue's look, rule by rule, and why the others do not."""
    from .commands.audit import audit

    if not audit(
        subject, against=against, overrides=overrides or [], start=start, output=output, min_pass=min_pass,
        descriptor=descriptor, clip=clip,
    ):  # fmt: skip
        raise typer.Exit(1)


@app.command()
def export(
    what: Annotated[str, typer.Argument(help="A run's folder, or a checkpoint")],
    to: Annotated[
        list[str],
        typer.Option(help="diffusers, single-file, lora, kohya, controlnet, comfyui or all; may be repeated"),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The folder to write; default: the run's exports/")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, float16 or bfloat16, of all but a LoRA; default: the checkpoint's"),
    ] = None,
    draws: Annotated[int, typer.Option(min=0, help="comfyui: random starts a class, beside its mean")] = 3,
    push: Annotated[str | None, typer.Option(help="A hub repository to upload to")] = None,
    private: Annotated[bool, typer.Option(help="Create that repository as a private one")] = False,
) -> None:
    """Write a checkpoint as other tools read it; each form must draw the same picture without onbrand."""
    from .commands.export import export

    export(
        what, to=to, output=output, dtype=dtype, draws=draws, push=push, private=private
    )  # fmt: skip


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="A checkpoint")],
    second: Annotated[str, typer.Argument(help="Another")],
    catalogue: Annotated[
        str | None, typer.Option(help="The training pictures: are they known by heart?")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A file of prompts; default: the catalogue's captions, or the classes")
    ] = None,
    pictures: Annotated[int, typer.Option(help="How many each draws, two a prompt")] = 128,
    descriptor: Annotated[
        str | None, typer.Option(help="An SSCD file, or a CLIP folder or hub id; default: thumbnails")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Cosine of the same picture; default: .6 for SSCD, else calibrated")
    ] = None,
    steps: Steps = 20,
    guidance: Guidance = 3.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the first noise; then one more each")] = 0,
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to write")] = Path("compare"),
) -> None:
    """Do two checkpoints draw the same pictures from the same noise, and are those the catalogue's?"""
    from .commands.compare import compare

    compare(
        first, second, catalogue=catalogue, prompts=prompts, pictures=pictures, descriptor=descriptor,
        threshold=threshold, steps=steps, guidance=guidance, seed=seed, output=output,
    )  # fmt: skip


def main() -> None:
    try:
        app()
    except (ValueError, OSError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()

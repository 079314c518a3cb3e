"""The command line: parses, calls one function of `commands`, prints errors as one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Fine-tune Stable Diffusion on a product catalogue and keep the catalogue's look.",
)

Sampler = Annotated[str, typer.Option(help="A scheduler class of diffusers")]
Steps = Annotated[int, typer.Option(min=1, help="Sampling steps")]
Guidance = Annotated[float, typer.Option(min=0, help="Classifier-free guidance scale")]
Seed = Annotated[int, typer.Option(min=0)]


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="The config file to write")] = Path("onbrand.yaml"),
    recipe: Annotated[str, typer.Option(help="The shipped recipe to start from")] = "sd15",
) -> None:
    """Write a commented starter config."""
    from .commands.init import init

    typer.echo(f"wrote {init(path, recipe=recipe)}")


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
        str | None,
        typer.Option(help="A checkpoint: write a copy that starts from it, with audits"),
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
    prompts: Annotated[list[str], typer.Argument(help="One picture set a prompt; @FILE reads one a line")],
    class_name: Annotated[str | None, typer.Option("--class", help="The class to start from")] = None,
    start: Annotated[str, typer.Option(help="mean, draw, or none for pure noise")] = "mean",
    start_image: Annotated[Path | None, typer.Option(help="Start from this picture instead")] = None,
    condition: Annotated[Path | None, typer.Option(help="A ControlNet's condition picture")] = None,
    size: Annotated[
        tuple[int, int] | None, typer.Option(metavar="HEIGHT WIDTH", help="Pixels; default: the checkpoint's")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Pictures a prompt")] = 4,
    scheduler: Sampler = "DDIMScheduler",
    steps: Steps = 20,
    guidance: Guidance = 3.0,
    seed: Seed = 0,
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to write")] = Path("samples"),
) -> None:
    """Draw pictures: PNGs that carry their recipe, and a contact sheet."""
    from .commands.sample import sample

    sheet = sample(
        checkpoint, prompts, class_name=class_name, start=start, start_image=start_image, condition=condition,
        size=size, count=count,
        scheduler=scheduler, steps=steps, guidance=guidance, seed=seed, output=output,
    )  # fmt: skip
    typer.echo(f"wrote {sheet}")


@app.command()
def audit(
    subject: Annotated[str, typer.Argument(help="A checkpoint, or a folder of pictures")],
    against: Annotated[str, typer.Option(help="The catalogue that sets the limits")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...")] = None,
    start: Annotated[str, typer.Option(help="For a checkpoint: mean, draw, or none for pure noise")] = "mean",
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to write")] = Path("audit"),
    min_pass: Annotated[float, typer.Option(min=0, max=1, help="Exit with 1 below this pass rate")] = 0.0,
) -> None:
    """Which pictures keep the catalogue's look, rule by rule, and why the others do not."""
    from .commands.audit import audit

    if audit(subject, against=against, overrides=overrides or [], start=start, output=output) < min_pass:
        raise typer.Exit(1)


def main() -> None:
    try:
        app()
    except (ValueError, OSError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()

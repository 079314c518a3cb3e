"""onbrand fit: the start distribution of a catalogue, what it says, and a checkpoint that starts from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import yaml
from rich.console import Console

from ..configs import Config, config_of, load_config, parse_config, recipe_names
from .audit import condition_of, framing_of
from .console import best_device, quiet_console

RESULT = "diagnosis.json"
# what overrides may say of pictures that are added: how they are read, not what is made of them
READING = tuple(
    f"data.{key}"
    for key in ("image_columns", "caption_column", "class_column", "image_classes", "on_bad_image", "split")
)


def fit(
    what: str, *, into: str | None, add_to: Path | None, output: Path | None, overrides: list[str]
) -> Path:
    """Fits the start distribution, prints its diagnosis and writes it with a page; with `into` it writes a
    copy of that checkpoint that starts from it, audited before and after. Returns the folder written.

    what: a config, the name of a recipe, or a catalogue; output: runs/<its name>_fit if None. add_to: the
    folder of an earlier fit, to whose statistics the catalogue's pictures are added, in place.
    Raises ValueError when the folder exists and is not that of an earlier fit, and on anything wrong with
    config, checkpoint or catalogue.
    """
    from ..whole_file import recover, whole

    if add_to is not None:
        recover(add_to)
        is_fit = (add_to / RESULT).exists() and (add_to / "start_distribution").is_dir()
        if not is_fit or into is not None or output is not None:
            got = "it beside --into or --output" if is_fit else f"{add_to}"
            raise ValueError(f"--add-to must be the folder of an earlier fit, and alone, got {got}")
    output = (add_to or output or Path("runs") / f"{Path(what).stem}_fit").absolute()
    recover(output)
    if output.exists() and (into is not None or not (output / RESULT).exists()):
        raise ValueError(f"output must be a new folder, got {output}, which exists")
    console = quiet_console()
    if add_to is None:
        fitted = _fit(what, into=into, output=output, overrides=overrides, console=console)
    else:
        fitted = _add(what, earlier=output, overrides=overrides, console=console)
    if not fitted.is_main:
        return output
    with whole(output) as beside:
        if into is None:
            _write(fitted, beside, title=output.name, console=console)
            fitted.prepared.start_distribution.save_pretrained(beside / "start_distribution")
        else:
            _attach(fitted, beside, into=into, console=console)
    inner = output if into is None else output / "fit"
    console.print(f"[bold]page[/]     {inner / 'start.html'}", soft_wrap=True)
    if into is not None:
        console.print(f"[bold]model[/]    {output}", soft_wrap=True)
        console.print(
            f"[bold]picture[/]  {inner / 'samples/from_its_start_distribution.png'}", soft_wrap=True
        )
    return output


class _Fitted(NamedTuple):
    config: Config
    pipeline: Any
    prepared: Any
    diagnoses: dict[tuple[int, int], Any]
    is_main: bool
    added: str | None = None  # the catalogue whose pictures were added


def _fit(what: str, *, into: str | None, output: Path, overrides: list[str], console: Console) -> _Fitted:
    config = load_config(what, overrides) if is_config(what) else None
    from ..data.table import catalogue_table
    from ..inference.load import load_pipeline
    from ..train.diagnosis import AXES, diagnose_start
    from ..train.launch import processes_of, start_accelerator
    from ..train.models import load_base, resolve_base
    from ..train.prepare import latents_folder, prepare, split_catalogue
    from ..train.start import offset_start

    model = config_of(overrides, data={"source": what}).model if config is None else config.model
    pipeline = load_base(model) if into is None else load_pipeline(resolve_base(into))
    if config is None:
        base, trained = into or model.base, into is None
        config = _config_for(pipeline, what, base=base, trained=trained, overrides=overrides)
    elif into is not None:
        config = _untrained(config, pipeline, base=into)
    processes = processes_of(start_accelerator(config))
    console.quiet = not processes.is_main
    parts = split_catalogue(config, processes=processes)
    console.print(catalogue_table(*parts))
    with console.status("fitting the start distribution"):
        prepared = prepare(
            config,
            pipeline.to(best_device()),
            parts=parts,
            t_min=offset_start(pipeline, config.start),
            cache_dir=latents_folder(config.data, output),
            device=pipeline.device,
            reserve=max(0, AXES - config.start.components),
            processes=processes,
        )
        diagnoses = diagnose_start(prepared, pipeline, config=config, processes=processes)
    return _Fitted(config, pipeline, prepared, diagnoses, processes.is_main)


def _add(what: str, *, earlier: Path, overrides: list[str], console: Console) -> _Fitted:
    """An earlier fit with a catalogue's pictures added, all of them: none is held out."""
    wrong = [override for override in overrides if override.partition("=")[0] not in READING]
    if wrong:
        raise ValueError(f"overrides with --add-to must be among {', '.join(READING)}, got {wrong[0]!r}")
    config = parse_config(yaml.safe_load((earlier / "config.yaml").read_text()))
    from ..data.catalogue import Catalogue
    from ..data.table import catalogue_table
    from ..pca import StartDistribution, Statistics, check_vae
    from ..train.diagnosis import diagnose_start
    from ..train.launch import processes_of, start_accelerator
    from ..train.models import load_base
    from ..train.prepare import Prepared, encode_part, latents_folder, open_catalogue
    from ..train.start import add_to_start, check_addable

    start = StartDistribution.from_pretrained(earlier / "start_distribution")
    check_addable(start)
    known = {
        (height, width): Statistics.load(_statistics_file(earlier, (height, width)))
        for height, width in config.data.buckets or [(config.data.resolution, config.data.resolution)]
    }
    processes = processes_of(start_accelerator(config))  # before anything is on a device: it says which
    console.quiet = not processes.is_main
    pipeline = load_base(config.model).to(best_device())
    check_vae(start.config["vae_fingerprint"], pipeline.vae)
    # prefixes are those of the start distribution: the new pictures need not be of all its classes
    reading = config.data.model_copy(update={"source": what, "class_prefixes": {}})
    reading = config_of(overrides, data=reading.model_dump(mode="json")).data
    found = open_catalogue(reading, processes=processes)
    names = {*found.class_names, *start.class_names}
    prefixes = start.config["caption_prefixes"]
    catalogue = Catalogue(found.pictures, class_names=names, prefixes=prefixes, dropped=found.dropped)
    nothing = catalogue.subset([])
    console.print(catalogue_table(catalogue, nothing))
    folder = latents_folder(config.data, earlier)
    with console.status("adding to the start distribution"):
        part, held_out = (
            encode_part(one, pipeline, config, cache_dir=folder, device=pipeline.device, processes=processes)
            for one in (catalogue, nothing)
        )
        start, statistics = add_to_start(
            start, known, part, cache_dir=folder, device=pipeline.device, processes=processes
        )
        prepared = Prepared(part, held_out, start, statistics)
        diagnoses = diagnose_start(prepared, pipeline, config=config, processes=processes)
    return _Fitted(config, pipeline, prepared, diagnoses, processes.is_main, added=what)


def _statistics_file(folder: Path, size: tuple[int, int]) -> Path:
    return folder / f"statistics_{size[0]}x{size[1]}.safetensors"


def is_config(what: str) -> bool:
    """Whether a name is that of a config or a shipped recipe; else it is a catalogue."""
    return Path(what).suffix in (".yaml", ".yml") or (what in recipe_names() and not Path(what).exists())


def _config_for(pipeline: Any, what: str, *, base: str, trained: bool, overrides: list[str]) -> Config:
    """The config of a bare catalogue: pictures framed as the checkpoint knows them."""
    return config_of(
        overrides,
        data={"source": what, **framing_of(pipeline)},
        # where nothing is trained no timestep is trained from the start: the offset range stays empty
        start={"enabled": trained},
        model={"base": base, **condition_of(pipeline)},
    )


def _untrained(config: Config, pipeline: Any, *, base: str) -> Config:
    """A config for a checkpoint that is not trained: its own base, and an empty offset range."""
    values = config.to_dict()
    values["model"] |= {"base": base, **condition_of(pipeline)}
    values["start"]["enabled"] = False
    return parse_config(values)


def _write(fitted: _Fitted, folder: Path, *, title: str, console: Console) -> None:
    """The diagnosis as JSON and page, and the statistics that later pictures can be added to."""
    from rich.progress import Progress

    from ..evaluation.rules import write_json
    from ..evaluation.start_page import diagnosis_table
    from ..train.diagnosis import facts_of, pictures_to_decode, write_pages

    folder.mkdir(parents=True)
    prepared = fitted.prepared
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("decoding class means and components", total=pictures_to_decode(prepared))
        write_pages(
            prepared,
            fitted.pipeline,
            fitted.diagnoses,
            title=title,
            facts=facts_of(prepared, fitted.config) | ({"added": fitted.added} if fitted.added else {}),
            folder=folder,
            advance=lambda count: progress.advance(bar, count),
        )
    for size, statistics in prepared.statistics.items():
        statistics.save(_statistics_file(folder, size))
    (folder / "config.yaml").write_text(yaml.safe_dump(fitted.config.to_dict(), sort_keys=False))
    origins, found = prepared.train.catalogue.origins, {}
    for (height, width), (diagnosis, rows) in fitted.diagnoses.items():
        content = found[f"{height}x{width}"] = diagnosis.to_dict()
        content["outliers"] = [
            {"picture": str(origins[rows[outlier.pop("row")]]), **outlier} for outlier in content["outliers"]
        ]
    write_json(found, folder / RESULT)
    for (height, width), (diagnosis, _) in fitted.diagnoses.items():
        if len(found) > 1:
            console.print(f"\n[bold]{height} x {width}[/]")
        console.print(diagnosis_table(diagnosis))
        console.print(diagnosis.verdict)


def _attach(fitted: _Fitted, folder: Path, *, into: str, console: Console) -> None:
    """The checkpoint with the start distribution, and audits of it from pure noise and from its start."""
    from ..evaluation import compare_table
    from ..train.judge import audit_model, fix_limits, save_audit

    config, pipeline, prepared = fitted.config, fitted.pipeline, fitted.prepared
    limits = fix_limits(prepared.train, pipeline.vae)
    pipeline.set_start_distribution(prepared.start_distribution)
    pipeline.save_pretrained(folder)
    pipeline.safety_checker = None  # a picture it blackens says nothing about the brand
    _write(fitted, folder / "fit", title=Path(into).stem, console=console)
    reports, how = {}, prepared.start_distribution.default_start
    with console.status("audit: drawing pictures"):
        for name, start in (("from pure noise", "none"), ("from its start distribution", how)):
            audited = audit_model(
                pipeline, prepared.held_out, limits=limits, start=start, settings=config.run.audit,
                seed=config.run.seed,
            )  # fmt: skip
            save_audit(audited, name=name, run=folder / "fit")
            reports[name] = audited.report
    console.print(compare_table(reports, title=f"On-brand audit of {into} against {config.data.source}"))

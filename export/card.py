"""The model card: README.md of a checkpoint folder, with the facts that its readers and the hub look for."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..pca import StartDistribution
from ..whole_file import whole

START, NOISE = "from start distribution", "from pure noise"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
MOST_LISTED = 40


def write_card(
    folder: str | Path,
    *,
    title: str,
    audit: Mapping[str, Any] | None,
    comparisons: Mapping[str, Mapping[str, Any]] | None = None,
    pictures: Sequence[str | Path] = (),
    base: str,
    license: str | None = None,
    facts: Mapping[str, Any] | None = None,
    example: Mapping[str, Any] | None = None,
) -> Path:
    """Writes README.md into the folder of a checkpoint that has a start distribution; returns its path.

    audit: of the model from its start distribution, as in a run's `audit.json` ("pass_rate", "n", "rules");
    comparisons: further audits by name, of which "from pure noise" also tells what a plain pipeline loses;
    "_" in a name is read as a space. base: a hub id, or a path of which only the last part is told.
    facts: label -> number, text, list or mapping, see `start_facts`; of its "classes" the first is the
    example's. example: arguments of the call that is shown, "prompt" too. What is not given is left out.
    Pictures are copied into the folder as card_1.png and so on.
    Loading without onbrand is described where the folder holds a `pipeline.py`.
    Raises ValueError on a missing folder or picture, and on an audit without pass_rate, n or rules.
    """
    folder, facts = Path(folder), facts or {}
    if not folder.is_dir():
        raise ValueError(f"folder must exist, got {str(folder)!r}")
    audits = {name.replace("_", " "): found for name, found in (comparisons or {}).items()}
    if audit is not None:
        audits[START] = audit
    for name, found in audits.items():
        _check_audit(found, name)
    title = " ".join(title.split())
    parts = [
        f"# {title}",
        _what_it_is(title, base=base),
        *_copied(pictures, folder),
        _loading(folder, classes=facts.get("classes"), example=example or {}),
        _plain_loading(audits),
        _audit_table(audits),
        _fact_list(facts),
        LIMITS,
    ]
    data = _metadata(title, audit=audits.get(START), base=base, license=license)
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, parts)) + "\n")
    with whole(folder / "README.md") as beside:
        card.save(beside)
    return folder / "README.md"


def start_facts(distribution: StartDistribution, *, vae_scale_factor: int = 8) -> dict[str, Any]:
    """The facts of a start distribution for a card: classes with pictures, sizes, samplers, offset range."""
    config = distribution.config
    counts = [distribution.at(*size).config["counts"] for size in distribution.sizes]
    classes: Any = distribution.class_names
    if all(counts):
        totals = {name: sum(own[i] for own in counts) for i, name in enumerate(classes)}
        classes = {name: total for name, total in totals.items() if total}
    sizes = [f"{h * vae_scale_factor} x {w * vae_scale_factor}" for h, w in distribution.sizes]
    facts = {"classes": classes, "sizes (height x width, pixels)": sizes}
    if config["samplers"]:
        facts["declared samplers"] = [_sampler(*sampler) for sampler in config["samplers"]]
    last = config["num_train_timesteps"] - 1
    if distribution.offset_from <= last:
        facts["offset range"] = f"timesteps {distribution.offset_from} to {last}"
    return facts


def _sampler(name: str, steps: int, spacing: str | None = None) -> str:
    return f"{name} with {steps} steps" + (f" ({spacing})" if spacing else "")


def _check_audit(found: Mapping[str, Any], name: str) -> None:
    missing = [key for key in ("pass_rate", "n", "rules") if key not in found]
    if missing:
        raise ValueError(f"audit {name!r} must hold pass_rate, n and rules, got no {' and '.join(missing)}")


def _metadata(
    title: str, *, audit: Mapping[str, Any] | None, base: str, license: str | None
) -> ModelCardData:
    results = None
    if audit is not None:
        result = EvalResult(
            task_type="text-to-image",
            dataset_type="catalogue",
            dataset_name="prompts held out of the catalogue",
            metric_type="pass_rate",
            metric_name="on-brand audit, share of pictures that pass all rules",
            metric_value=audit["pass_rate"],
        )
        results = [result]
    return ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        base_model=base if _is_hub_id(base) else None,
        license=license,
        tags=["onbrand", "stable-diffusion", "start-distribution"],
        model_name=title if results else None,
        eval_results=results,
    )


def _is_hub_id(base: str) -> bool:
    return bool(HUB_ID.fullmatch(base)) and not base.startswith(".") and not Path(base).exists()


def _what_it_is(title: str, *, base: str) -> str:
    name = base if _is_hub_id(base) else re.split(r"[\\/]", base.rstrip("\\/"))[-1]
    return (
        f"{title} is a text-to-image model: `{name}`, fitted to a product catalogue with onbrand. It carries "
        "a start distribution: sampling begins from what the catalogue's pictures have in common, so that "
        "pictures keep the catalogue's background, framing, pose and light."
    )


def _copied(pictures: Sequence[str | Path], folder: Path) -> list[str]:
    """Copies the pictures beside the card; Markdown that shows them."""
    for picture in map(Path, pictures):
        if not picture.is_file():
            raise ValueError(f"picture must be an existing file, got {str(picture)!r}")
    shown = []
    for i, picture in enumerate(map(Path, pictures)):
        copy = folder / f"card_{i + 1}{picture.suffix.lower()}"
        if not (copy.exists() and copy.samefile(picture)):
            shutil.copyfile(picture, copy)
        shown.append(f"![Pictures of this model]({copy.name})")
    return shown


def _loading(folder: Path, *, classes: Any, example: Mapping[str, Any]) -> str:
    names = list(classes or [])
    call = {"prompt": f"a {names[0]}" if names else "a prompt", **example}
    if names:
        call["class_name"] = names[0]
    prompt = json.dumps(call.pop("prompt"), ensure_ascii=False)
    given = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in call.items()]
    shown = ", ".join([prompt, *given])
    ours = f"""## Loading

With onbrand:

```python
from onbrand import load_pipeline

pipe = load_pipeline("path/to/this/folder")
pipe({shown}).images[0]
```"""
    if not (folder / "pipeline.py").is_file():
        return ours
    return f"""{ours}

Without onbrand, with diffusers alone (the folder's own `pipeline.py` runs):

```python
from diffusers import DiffusionPipeline

folder = "path/to/this/folder"
pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
pipe({shown}).images[0]
```

Without `trust_remote_code` diffusers refuses to run the folder's code; without `custom_pipeline` it says \
"has no attribute {_pipeline_name(folder)}"."""


def _pipeline_name(folder: Path) -> str:
    index = folder / "model_index.json"
    return (
        json.loads(index.read_text())["_class_name"] if index.is_file() else "OffsetStableDiffusionPipeline"
    )


def _plain_loading(audits: Mapping[str, Mapping[str, Any]]) -> str:
    text = (
        "Loaded as one of diffusers' own pipelines (`StableDiffusionPipeline` and the like), it starts from "
        "pure noise instead of its start distribution, which is not what it was fitted for."
    )
    if NOISE in audits:
        text += f" From pure noise {_rate(audits[NOISE])} of its pictures pass the audit"
        text += f", from its start distribution {_rate(audits[START])}." if START in audits else "."
    return text


def _audit_table(audits: Mapping[str, Mapping[str, Any]]) -> str:
    """Share of pictures that keep each rule, a column an audit; "" without audits."""
    if not audits:
        return ""
    rules = list(dict.fromkeys(rule for found in audits.values() for rule in found["rules"]))
    rows = [["rule", *audits], ["---", *["---:"] * len(audits)]]
    for rule in rules:
        rates = [found["rules"].get(rule) for found in audits.values()]
        rows.append([rule, *("" if rate is None else f"{100 * rate:.1f} %" for rate in rates)])
    rows.append(["all rules", *map(_rate, audits.values())])
    rows.append(["pictures", *(str(found["n"]) for found in audits.values())])
    table = "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in rows)
    return (
        "## On-brand audit\n\nShare of pictures that keep each rule, ± one standard error. The limits come "
        f"from the catalogue's own pictures.\n\n{table}"
    )


def _rate(found: Mapping[str, Any]) -> str:
    rate, n = found["pass_rate"], found["n"]
    return f"{100 * rate:.1f} ± {100 * math.sqrt(rate * (1 - rate) / n):.1f} %"


def _cell(value: str) -> str:
    return " ".join(value.split()).replace("|", r"\|")


def _fact_list(facts: Mapping[str, Any]) -> str:
    if not facts:
        return ""
    return "## Facts\n\n" + "\n".join(f"- {label}: {_listed(value)}" for label, value in facts.items())


def _listed(value: Any) -> str:
    """A value in words: the items of a list, or of a mapping with their numbers."""
    if isinstance(value, Mapping):
        items = [f"{name} ({number})" for name, number in value.items()]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        items = [str(item) for item in value]
    else:
        items = [str(value)]
    more = [f"and {len(items) - MOST_LISTED} more"] if len(items) > MOST_LISTED else []
    return " ".join(", ".join([*items[:MOST_LISTED], *more]).split())


LIMITS = """## Limits

- It was fitted to the classes of its catalogue. What it does with other subjects was not measured.
- It draws at the sizes of its start distribution; another size is refused unless it starts from pure noise.
- A sampler whose first timestep lies below the offset range begins where the model was not trained to.
- The audit judges background, framing and light, not whether a picture shows what the prompt asks for.
- The licence and the limits of the base model hold for this one too."""

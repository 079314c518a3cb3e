"""Reading a config: a YAML file, `key.sub=value` overrides, and one error that lists everything wrong."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from .schema import OTHER_STARTS, Config

RECIPES = Path(__file__).parent


class ConfigError(ValueError):
    """Everything that is wrong with a config, one line each."""


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_config(name: str) -> Path:
    """A config file by path, or a shipped recipe by name. Raises ConfigError listing the recipes."""
    for path in (Path(name), RECIPES / f"{name}.yaml"):
        if path.is_file():
            return path
    near = difflib.get_close_matches(Path(name).stem, recipe_names(), 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"config must be a YAML file or one of {', '.join(recipe_names())}, got {name!r}{hint}")


def config_of(overrides: Sequence[str], **sections: dict[str, Any]) -> Config:
    """A config from nothing but sections and overrides. Raises ConfigError with all problems at once."""
    values: dict[str, Any] = {name: dict(section) for name, section in sections.items()}
    for override in overrides:
        _apply(values, override)
    return parse_config(values)


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """The validated config of a file or shipped recipe, overrides applied; run.dir defaults to runs/<name>.

    Raises ConfigError with all problems at once.
    """
    path = find_config(name)
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"config must be valid YAML, got {path}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"config must be a mapping of sections, got {type(values).__name__} in {path}")
    for override in overrides:
        _apply(values, override)
    values.setdefault("run", {})
    if isinstance(values["run"], dict) and not values["run"].get("dir"):
        values["run"]["dir"] = f"runs/{path.stem}"
    return parse_config(values)


def parse_config(values: dict[str, Any]) -> Config:
    """Validates nested values. Raises ConfigError with all problems at once."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise ConfigError("\n".join([f"{len(lines)} problem(s) in the config:", *lines])) from None


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override must be key.sub=value, got {override!r}")
    *sections, last = key.split(".")
    for section in sections:
        if not isinstance(values.get(section), dict):
            values[section] = {}
        values = values[section]
    try:
        values[last] = text if text.startswith("#") else yaml.safe_load(text)  # a colour is no comment
    except yaml.YAMLError:
        values[last] = text


def _explain(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        if reason := OTHER_STARTS.get(str(problem["loc"][-1])):
            return f"  {key}: must be left out, got {problem['input']!r}: {reason}"
        known = _keys_beside(problem["loc"])
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        return f"  {key}: unknown key; {hint}"
    if problem["type"] == "value_error":
        where = f"{key}." if key else ""
        return f"  {where}{problem['msg'].removeprefix('Value error, ')}"
    if not key:
        return f"  {problem['msg'].removeprefix('Value error, ')}"
    return f"  {key}: {problem['msg'][0].lower()}{problem['msg'][1:]}, got {problem['input']!r}"


def _keys_beside(location: tuple[Any, ...]) -> list[str]:
    """The keys of the section that holds the last part of `location`."""
    section: type[BaseModel] = Config
    for part in location[:-1]:
        if part in section.model_fields:
            section = _section_of(section.model_fields[str(part)].annotation) or section
    return list(section.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section inside an annotation such as `list[SamplerConfig] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _section_of(arg))), None)


def differences(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> list[str]:
    """`key: old -> new` for every value that differs between two nested dictionaries."""
    found = []
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: {old!r} -> {new!r}")
    return found

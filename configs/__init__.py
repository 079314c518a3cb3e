"""Typed run configs and the recipes that ship with the package."""

from .load import ConfigError, config_of, differences, find_config, load_config, parse_config, recipe_names
from .schema import Config

__all__ = [
    "Config",
    "ConfigError",
    "config_of",
    "differences",
    "find_config",
    "load_config",
    "parse_config",
    "recipe_names",
]

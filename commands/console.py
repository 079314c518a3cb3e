"""What every command that draws or loads needs: a quiet start and a console."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

SPEAKERS = [Path(__file__).parents[1] / name for name in ("commands", "evaluation", "inference", "train")]


def best_device() -> str:
    """The accelerator if there is one, else the CPU."""
    import torch

    return (
        str(torch.accelerator.current_accelerator() or "cpu") if torch.accelerator.is_available() else "cpu"
    )


def check_folder(output: Path) -> None:
    """Raises ValueError on an output that is there and no folder."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output must be a folder, got the file {output}")


def quiet_console() -> Console:
    """A console; the libraries' notes about optional parts are silenced."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    import datasets
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    datasets.disable_progress_bars()
    return Console()


@contextmanager
def quiet_log() -> Iterator[None]:
    """The package's log at errors alone: what else it says on loading is said by the command."""
    logger = logging.getLogger("onbrand")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def notes_once(say: Callable[..., None] | None) -> Iterator[None]:
    """Says each of this package's warnings once, as a line; other libraries' warnings are left alone."""
    said: set[str] = set()
    with warnings.catch_warnings():
        plain = warnings.showwarning
        warnings.filterwarnings("always", category=UserWarning, module="onbrand")

        def show(message: Any, category: Any, filename: str, *others: Any, **named: Any) -> None:
            if Path(filename).parent not in SPEAKERS:
                plain(message, category, filename, *others, **named)
            elif str(message) not in said and say is not None:
                said.add(str(message))
                say(f"note: {message}", soft_wrap=True)

        warnings.showwarning = show
        yield

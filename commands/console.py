"""What every command that draws or loads needs: a quiet start and a console."""

from __future__ import annotations

import logging
import os
import warnings

from rich.console import Console


def best_device() -> str:
    """The accelerator if there is one, else the CPU."""
    import torch

    return (
        str(torch.accelerator.current_accelerator() or "cpu") if torch.accelerator.is_available() else "cpu"
    )


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

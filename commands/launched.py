"""The processes that a command was started as."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any


def start_processes() -> tuple[Any, Any, Callable[[], None]]:
    """The processes of this call, the device of this one, and what ends their connection."""
    from accelerate import PartialState
    from accelerate.utils import gather_object, parse_flag_from_env

    from ..data.processes import Processes
    from ..train.launch import SLOWEST_STAGE, check_processes

    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=SLOWEST_STAGE)
    check_processes(
        state.num_processes, on_cpu=state.device.type == "cpu", asked=None, environment=os.environ
    )
    processes = Processes(state.process_index, state.num_processes, gather_object, state.wait_for_everyone)
    close = state.destroy_process_group if processes.count > 1 else lambda: None
    return processes, state.device, close

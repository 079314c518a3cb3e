"""Ctrl-C and SIGTERM: the first asks the loop to save and stop, the second stops at once."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO = 1.0  # seconds within which another signal is the same wish: launchers pass on what the group has heard


def leave_signals_to_the_main_process(_: int) -> None:
    """For dataloader workers: a signal to the whole group must not end them before the run is saved."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


class Stopped(Exception):
    """A run that was asked to stop, after it saved. `exit_code` is the shell's for the signal."""

    def __init__(self, step: int, checkpoint: Any, signum: int) -> None:
        self.exit_code = 128 + signum
        super().__init__(
            f"stopped by {signal.Signals(signum).name} after step {step}, saved in {checkpoint}; "
            "the same command goes on from there"
        )


class StopRequest:
    """Remembers the first signal inside its block; a second one, a second later, does what it did before.

    Outside the main thread it hears nothing."""

    def __init__(self) -> None:
        self.signum = 0
        self._heard = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.signal(signum, self._remember) for signum in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        if not self.signum:
            self.signum, self._heard = signum, time.monotonic()
        elif time.monotonic() - self._heard > ECHO:
            handler = self._before[signum]
            self.__exit__()
            if callable(handler):
                handler(signum, frame)
            else:
                signal.raise_signal(signum)

    def seen(self, accelerator: Accelerator, *, ask_others: bool) -> int:
        """The signal, 0 if none came. Several processes answer alike, but only when all of them ask."""
        if accelerator.num_processes == 1:
            return self.signum
        if not ask_others:
            return 0
        signums = accelerator.gather(torch.tensor([self.signum], device=accelerator.device))
        return int(signums.max())

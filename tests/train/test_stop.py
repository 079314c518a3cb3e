"""The first signal is remembered, the second goes where it would have gone."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from onbrand.train import stop as stop_module
from onbrand.train.stop import SIGNALS, Stopped, StopRequest

ALONE = SimpleNamespace(num_processes=1)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Signals that reached the handlers of before; a second signal counts at once."""
    monkeypatch.setattr(stop_module, "ECHO", 0.0)
    signums: list[int] = []
    before = {signum: signal.signal(signum, lambda got, _: signums.append(got)) for signum in SIGNALS}
    yield signums
    for signum, handler in before.items():
        signal.signal(signum, handler)


def send(signum: int) -> None:
    """A real signal to this very process; Python runs its handler before the next line or soon after."""
    os.kill(os.getpid(), signum)
    time.sleep(0.01)


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_first_signal_is_remembered_and_the_second_is_not(
    heard: list[int], first: int, second: int
) -> None:
    with StopRequest() as stop:
        assert stop.seen(ALONE, ask_others=False) == 0
        send(first)
        assert heard == []
        assert stop.seen(ALONE, ask_others=False) == first
        send(second)
        assert heard == [second]
        assert stop.seen(ALONE, ask_others=False) == first


def test_an_echo_of_the_first_signal_is_no_second_wish(
    heard: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop_module, "ECHO", 60.0)
    with StopRequest() as stop:
        send(signal.SIGTERM)
        send(signal.SIGTERM)  # from the launcher, which heard the same
        assert heard == []
        assert stop.signum == signal.SIGTERM


def test_the_handlers_are_put_back_after_the_block(heard: list[int]) -> None:
    before = [signal.getsignal(signum) for signum in SIGNALS]
    with StopRequest() as stop:
        assert all(signal.getsignal(signum) == stop._remember for signum in SIGNALS)
    assert [signal.getsignal(signum) for signum in SIGNALS] == before
    send(signal.SIGTERM)
    assert heard == [signal.SIGTERM]
    assert stop.signum == 0


def test_the_handlers_are_put_back_when_the_block_raises(heard: list[int]) -> None:
    before = [signal.getsignal(signum) for signum in SIGNALS]
    with pytest.raises(ZeroDivisionError), StopRequest():
        raise ZeroDivisionError
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


def test_a_second_ctrl_c_interrupts(heard: list[int]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with StopRequest() as stop:
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert stop.signum == signal.SIGINT


def test_outside_the_main_thread_no_handler_is_touched(heard: list[int]) -> None:
    before = [signal.getsignal(signum) for signum in SIGNALS]

    def inside() -> tuple[list, int]:
        with StopRequest() as stop:
            handlers = [signal.getsignal(signum) for signum in SIGNALS]
            return handlers, stop.seen(ALONE, ask_others=True)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(inside).result() == (before, 0)


def test_several_processes_answer_alike_when_all_ask() -> None:
    asked: list[torch.Tensor] = []

    def gather(own: torch.Tensor) -> torch.Tensor:
        asked.append(own)
        return torch.cat([own, torch.tensor([signal.SIGTERM])])

    accelerator = SimpleNamespace(num_processes=2, device=torch.device("cpu"), gather=gather)
    with StopRequest() as stop:
        assert stop.seen(accelerator, ask_others=False) == 0
        assert asked == []
        assert stop.seen(accelerator, ask_others=True) == signal.SIGTERM
        assert [own.tolist() for own in asked] == [[0]]


def test_a_process_that_was_told_waits_until_all_ask() -> None:
    accelerator = SimpleNamespace(num_processes=2, device=torch.device("cpu"), gather=lambda own: own)
    stop = StopRequest()
    stop.signum = int(signal.SIGINT)
    assert stop.seen(accelerator, ask_others=False) == 0
    assert stop.seen(accelerator, ask_others=True) == signal.SIGINT


@pytest.mark.parametrize(("signum", "name", "code"), [(2, "SIGINT", 130), (15, "SIGTERM", 143)])
def test_what_a_stopped_run_says(signum: int, name: str, code: int) -> None:
    stopped = Stopped(40, "runs/demo/checkpoints/step_40", signum)
    assert stopped.exit_code == code
    assert str(stopped) == (
        f"stopped by {name} after step 40, saved in runs/demo/checkpoints/step_40; "
        "the same command goes on from there"
    )

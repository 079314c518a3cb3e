"""Calls that take turns: what passes between them and their owner, and how they end."""

import threading

import pytest
import torch
from onbrand.inference.aggregation.paused_call import PausedCall, Stopped


def test_turns_are_taken_one_after_the_other():
    log = []

    def call(pause):
        for i in range(3):
            log.append(("got", pause((threading.get_ident(), i))))

    paused = PausedCall(call)
    assert paused.advance("unread")[1] == 0
    assert log == []
    (thread, i) = paused.advance("a")
    assert (i, log) == (1, [("got", "a")])
    assert thread != threading.get_ident()
    assert paused.advance("b")[1] == 2
    assert log == [("got", "a"), ("got", "b")]
    assert paused.stop()
    assert log == [("got", "a"), ("got", "b")]


def test_a_stopped_call_ends_where_it_pauses_and_cleans_up():
    ended = []

    def call(pause):
        try:
            pause(1)
        except Exception:
            ended.append("an Exception")
        finally:
            ended.append(threading.current_thread())

    paused = PausedCall(call)
    assert not paused.stop()  # never begun
    paused.advance()
    assert paused.stop()
    assert len(ended) == 1
    assert not ended[0].is_alive()
    assert not paused.stop()
    assert not issubclass(Stopped, Exception)


def test_errors_come_out_as_they_were():
    error = KeyError("from inside")

    def call(pause):
        pause(1)
        raise error

    paused = PausedCall(call)
    paused.advance()
    with pytest.raises(KeyError) as caught:
        paused.advance()
    assert caught.value is error
    paused.stop()


def test_a_call_that_returns_is_an_error():
    with pytest.raises(ValueError, match="call must pause as often as it is advanced, got its end"):
        PausedCall(lambda pause: None).advance()


def state():
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None,
    )


@pytest.mark.parametrize(
    "condition",
    [
        torch.enable_grad,
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", dtype=torch.float16),
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    ],
)
def test_the_owners_modes_hold_in_the_call(condition):
    with condition():
        expected = state()
        paused = PausedCall(lambda pause: pause(state()))
        assert paused.advance() == expected
        paused.stop()
    assert state() == (True, False, False, None)

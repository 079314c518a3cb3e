"""A call that can be left in the middle and gone on with: several of them take turns, like coroutines."""

import queue
import threading
from collections.abc import Callable
from contextlib import ExitStack
from contextvars import copy_context
from typing import Any, NamedTuple

import torch


class Stopped(BaseException):
    """Raised where a call pauses, to end it. Not an Exception, which a call might catch."""


class _Event(NamedTuple):
    """What a call hands to its owner: a value at a pause, its result, or its error."""

    kind: str
    value: Any


class PausedCall:
    """`call(pause)` in a thread that runs only while its owner waits in `advance`.

    Nothing ever happens at the same time, so calls may share modules. In the call, `pause(value)` hands the
    value to the owner and returns what the owner sends next. What torch keeps for each thread (gradient and
    inference mode, autocast, CUDA stream and device) is as it was for the owner at the first `advance`.
    """

    def __init__(self, call: Callable[[Callable[[Any], Any]], Any]) -> None:
        self._call = call
        self._sent: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def advance(self, value: Any = None) -> Any:
        """What the call hands over at its next pause; value: what its last pause returns, unless the first.

        Raises what the call raises, and ValueError if it returns instead of pausing.
        """
        if self._thread is None:
            context, conditions = copy_context(), _conditions()
            self._thread = threading.Thread(target=context.run, args=(self._run, conditions), daemon=True)
            self._thread.start()
        else:
            self._sent.put(value)
        event = self._events.get()
        if event.kind == "error":
            raise event.value
        if event.kind == "result":
            raise ValueError("call must pause as often as it is advanced, got its end")
        return event.value

    def stop(self) -> bool:
        """Ends the call at the pause it is in or comes to next, and waits until it has ended.

        Returns whether there was anything to end: not before the first `advance`, nor a second time.
        """
        thread, self._thread = self._thread, None
        if thread is None:
            return False
        self._sent.put(Stopped)
        thread.join()
        return True

    def _pause(self, value: Any) -> Any:
        self._events.put(_Event("pause", value))
        sent = self._sent.get()
        if sent is Stopped:
            raise Stopped
        return sent

    def _run(self, conditions: Callable[[], ExitStack]) -> None:
        try:
            with conditions():
                event = _Event("result", self._call(self._pause))
        except Stopped:
            return
        except BaseException as error:
            event = _Event("error", error)
        self._events.put(event)


def _conditions() -> Callable[[], ExitStack]:
    """Enters, in another thread, what torch keeps for this one."""
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    accelerator = torch.accelerator.current_accelerator()
    kinds = ["cpu"] if accelerator is None else ["cpu", accelerator.type]
    autocasts = [(kind, torch.get_autocast_dtype(kind)) for kind in kinds if torch.is_autocast_enabled(kind)]
    stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None

    def enter() -> ExitStack:
        stack = ExitStack()
        if inference:
            stack.enter_context(torch.inference_mode())
        stack.enter_context(torch.set_grad_enabled(grad))
        for kind, dtype in autocasts:
            stack.enter_context(torch.autocast(kind, dtype=dtype))
        stack.enter_context(torch.cuda.stream(stream))
        return stack

    return enter

"""The part of a UNet's pass that no text reaches, run once for many texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .attention_maps import cross_attentions, stopping_before


def shares_beginning(unet: Any) -> bool:
    """Whether a text reaches this UNet through its cross-attention alone.

    Not so in SDXL, whose pooled text is added to the timestep.
    """
    names = ("addition_embed_type", "encoder_hid_dim_type")
    return all(unet.config.get(name) is None for name in names)


class SharedBeginning:
    """What a UNet computes before its first cross-attention, recorded once and replayed under other texts.

    unet: one that `shares_beginning`; call: what to call it with, under any text. Kept are the outputs of
    modules; what lies between modules is computed again from them.
    """

    def __init__(self, unet: nn.Module, *call: Any) -> None:
        self.outputs: dict[nn.Module, Any] = {}
        seen: set[nn.Module] = set()

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            for inner in module.modules():  # itself among them
                self.outputs.pop(inner, None)
            if module not in seen:  # what runs twice is run again
                self.outputs[module] = output
            seen.add(module)

        handles = [module.register_forward_hook(keep) for module in unet.modules()]
        try:
            with stopping_before(unet, next(iter(cross_attentions(unet)))):
                unet(*call)
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def replayed(self, times: int = 1) -> Iterator[None]:
        """Inside, the next pass takes over what was recorded, its batch repeated as often as said."""
        own = {module: module.__dict__.get("forward") for module in self.outputs}
        try:
            for module, output in self.outputs.items():
                module.forward = _once(_repeated(output, times), module.forward)  # type: ignore[method-assign]
            yield
        finally:
            for module, forward in own.items():
                del module.forward
                if forward is not None:  # such as an offloaded module's
                    module.forward = forward  # type: ignore[method-assign]


def _once(output: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward that returns output the first time; a module used again later then runs as ever."""
    recorded = [output]
    return lambda *args, **kwargs: recorded.pop() if recorded else forward(*args, **kwargs)


def _repeated(output: Any, times: int) -> Any:
    if isinstance(output, tuple):
        return tuple(_repeated(part, times) for part in output)
    if times == 1 or not isinstance(output, Tensor):
        return output
    return torch.cat([output] * times)

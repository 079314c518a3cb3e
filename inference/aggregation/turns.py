"""Whose turn it is among models that share memory or modules: devices and LoRA adapters go with it."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers.hooks.group_offloading import _is_group_offload_enabled
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

Adapters = Mapping[str, float] | Sequence[str] | None
LORA_PARTS = ("unet", "text_encoder", "text_encoder_2")


def check_adapters(pipelines: Sequence[Any], adapters: Sequence[Adapters]) -> None:
    """Refuses adapters that are not one entry a model, or that leave a model of shared modules to chance.

    Raises ValueError.
    """
    if len(adapters) != len(pipelines):
        raise ValueError(f"adapters must be {len(pipelines)}, one entry a model, got {len(adapters)}")
    for i, named in enumerate(adapters):
        for j, other in enumerate(adapters):
            shared = {id(part) for part in _parts(pipelines[i])} & {id(part) for part in _parts(pipelines[j])}
            if shared and named is not None and other is None:
                raise ValueError(
                    f"adapters of model {j + 1} must be given, as it shares modules with model {i + 1}, "
                    "got None ([] for no adapter)"
                )


class Turns:
    """Gives each model what it needs before its turn; `give_back` leaves adapters as they were found."""

    def __init__(self, pipelines: Sequence[Any], adapters: Sequence[Adapters], *, offload: bool) -> None:
        self.pipelines, self.adapters, self.offload = pipelines, adapters, offload
        self.device = pipelines[0]._execution_device if offload else None
        with_adapters = [p for p, named in zip(pipelines, adapters, strict=True) if named is not None]
        self.found = [_LayerState(layer) for layer in _lora_layers(with_adapters)]

    def take(self, model: int) -> None:
        """Makes ready for the model with this index."""
        if self.offload:
            self._move_in(model)
        named = self.adapters[model]
        if named is not None:
            _activate(self.pipelines[model], named)

    def give_back(self) -> None:
        """Ends all turns: the first model is where it was, and so are adapters."""
        if self.offload:
            self._move_in(0)
        for state in self.found:
            state.put_back()

    def _move_in(self, model: int) -> None:
        own = _movable(self.pipelines[model])
        kept = {id(module) for module in own}
        for pipeline in self.pipelines:
            for module in _movable(pipeline):
                if id(module) not in kept:
                    module.to("cpu")
        for module in own:
            module.to(self.device)


class _LayerState:
    """The adapters of one layer: which are active, how strongly, and which parameters are trainable."""

    def __init__(self, layer: Any) -> None:
        self.layer, self.enabled = layer, not layer.disable_adapters
        self.active, self.scaling = list(layer.active_adapters), dict(layer.scaling)
        self.trainable = {name: value.requires_grad for name, value in layer.named_parameters()}

    def put_back(self) -> None:
        layer = self.layer
        layer.set_adapter(self.active)
        layer.enable_adapters(self.enabled)
        layer.scaling.update(self.scaling)
        for name, value in layer.named_parameters():
            value.requires_grad_(self.trainable[name])


def _activate(pipeline: Any, named: Mapping[str, float] | Sequence[str]) -> None:
    if not named:
        if _lora_layers([pipeline]):
            pipeline.disable_lora()
        return
    pipeline.enable_lora()
    weights = list(named.values()) if isinstance(named, Mapping) else None
    pipeline.set_adapters(list(named), weights)


def _lora_layers(pipelines: Sequence[Any]) -> list[BaseTunerLayer]:
    layers = {
        id(module): module
        for pipeline in pipelines
        for part in _parts(pipeline)
        for module in part.modules()
        if isinstance(module, BaseTunerLayer)
    }
    return list(layers.values())


def _parts(pipeline: Any) -> list[nn.Module]:
    parts = [getattr(pipeline, name, None) for name in LORA_PARTS]
    return [part for part in parts if part is not None]


def _movable(pipeline: Any) -> list[nn.Module]:
    """The modules of a pipeline that no hook moves already."""
    modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    return [module for module in modules if not _is_hooked(module)]


def _is_hooked(module: nn.Module) -> bool:
    hooked = any(hasattr(inner, "_hf_hook") for inner in module.modules())
    return hooked or _is_group_offload_enabled(module)


def free_hooks(pipeline: Any) -> None:
    """Has accelerate offload the modules of a call that was left in the middle, where it does so at all."""
    if getattr(pipeline, "_all_hooks", None):
        pipeline.maybe_free_model_hooks()

"""A second device that computes with the CPU's own kernels, so that every value is the same to the bit.

As on an accelerator its tensors meet none of the CPU's, numpy reads none of them, and a draw of its own
generator is not the CPU's; as on some it has no float64. Importing this module makes it torch's accelerator
for the rest of the process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "elsewhere"
aten = torch.ops.aten
MOVES = (aten._to_copy.default, aten.copy_.default)
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)  # indices may be on the CPU
DRAWS = ("randn", "rand", "randint", "randperm", "normal_", "uniform_", "bernoulli_", "exponential_")


class Backend:
    """What torch asks of an accelerator's module."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed(self, seed: int) -> None:
        pass

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


class Elsewhere(torch.Tensor):
    """A tensor there; `inner` is the CPU's tensor that it computes with."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Elsewhere:
        tensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=torch.device(NAME, 0),
        )
        tensor.inner = inner
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{NAME}({self.inner!r})"

    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        return torch.Tensor.data.__get__(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, value: Elsewhere) -> None:
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.inner = value.inner  # as a module does when it changes the memory format of its weights

    # what torch does with any device's tensors but not with a subclass's

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.__reduce_ex__(protocol)

    def tolist(self) -> Any:
        return self.inner.tolist()

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()


class Computing(TorchDispatchMode):
    """Sees to calls that make tensors there from none, for the length of a block."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The call's result by the CPU, there if its tensors are. Raises RuntimeError where two devices meet."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = {id(tensor.inner): tensor for tensor in tensors if isinstance(tensor, Elsewhere)}
    here = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere) and tensor.ndim]
    may_meet = func in MOVES or (func in INDEXING and isinstance(args[0], Elsewhere))
    if there and here and not may_meet:
        raise RuntimeError(f"all tensors must be on one device, got {NAME} and cpu in {func}")
    asked = kwargs.get("device")
    goes_there = bool(there) if func is not aten.copy_.default else isinstance(args[0], Elsewhere)
    if asked is not None and (goes_there := torch.device(asked).type == NAME):
        kwargs = kwargs | {"device": torch.device("cpu")}
    if goes_there and func.overloadpacket.__name__ in DRAWS:
        raise RuntimeError(f"noise must be drawn on the CPU, got {func} on {NAME}: another device's differs")
    result = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))

    def place(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not goes_there:
            return value
        if value.dtype == torch.float64:
            raise TypeError(f"{NAME} must be without float64, as not every accelerator has it, got {func}")
        return there.get(id(value)) if id(value) in there else Elsewhere(value)

    return tree_map(place, result)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Elsewhere) else value


def _empty(maker: Callable[..., torch.Tensor]) -> Callable[..., Elsewhere]:
    def make(*sizes: Any, dtype: torch.dtype | None = None, **_: Any) -> Elsewhere:
        return Elsewhere(maker(*sizes, dtype=dtype))

    return make


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    _inner(target).copy_(_inner(source))
    return target


_setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
# calls that torch makes below a mode, torch.tensor and new_tensor for two
KERNELS = torch.library.Library("aten", "IMPL")
KERNELS.impl("empty.memory_format", _empty(torch.empty), "PrivateUse1")
KERNELS.impl("empty_strided", _empty(torch.empty_strided), "PrivateUse1")
KERNELS.impl("_copy_from", _copy_from, "PrivateUse1")
KERNELS.impl("_local_scalar_dense", lambda tensor: tensor.inner.item(), "PrivateUse1")
AUTOCAST = torch.library.Library("_", "IMPL")
AUTOCAST.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")

"""What each family of start distributions fits to a catalogue's latents."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from scipy.fft import idctn
from torch import Tensor

from .distribution import FAMILIES
from .fit import check_counts, fit_statistics
from .passes import Processes
from .statistics import Statistics
from .text_map import fit_text_map

OPTIONS = ("statistics", "band", "text_embeds", "allow_empty", "processes", "device")
BAND = 4

Latents = Tensor | Iterable[tuple[Tensor, Tensor]]


class Fitted(NamedTuple):
    """The tensors of a start distribution by their names, and the pictures of each class."""

    tensors: dict[str, Tensor]
    counts: list[int]


def fit_family(
    family: str,
    latents: Latents,
    class_ids: Tensor | None = None,
    *,
    class_names: Sequence[str],
    components: int = 0,
    statistics: Statistics | None = None,
    band: int = BAND,
    text_embeds: Any = None,
    allow_empty: bool = False,
    processes: Processes | None = None,
    device: str | torch.device = "cpu",
) -> Fitted:
    """The tensors of a family's start distribution.

    latents, class_ids, allow_empty, processes, device: as `fit_statistics` takes them; statistics: of these
    latents where they are known, with at least K axes; band: low frequencies an axis, family "dct", where
    K = C * band^2; text_embeds: family "text", (N, E) pooled text embeddings in the order of the latents, a
    tensor or anything that gives tensors by slices.
    Raises ValueError on an unknown family, on a K that the family cannot have, on a band beyond the latents,
    on text_embeds where there must be some or none, and as `fit_statistics` and `fit_text_map` do.
    Source: METHODS 1, "More start distributions".
    """
    check_family(family, components)
    if (family == "text") != (text_embeds is not None):
        rule = "given" if family == "text" else "left out"
        raise ValueError(
            f"text_embeds must be {rule} with family {family!r}, got {type(text_embeds).__name__}"
        )
    options: dict[str, Any] = {
        "class_names": class_names,
        "allow_empty": allow_empty,
        "processes": processes,
        "device": device,
    }
    if statistics is None:
        statistics = fit_statistics(latents, class_ids, components=components, **options)
    check_counts(statistics.counts, class_names, components=components, allow_empty=allow_empty)
    tensors = {
        "mean": statistics.mean,
        "components": statistics.components(components),
        "variances": statistics.variances[:, :components].float(),
    }
    if family == "diagonal":
        tensors["pixel_variances"] = statistics.pixel_variances
    elif family == "dct":
        tensors |= _low_band(latents, class_ids, statistics.shape, band=band, **options)
    elif family == "text":
        text_map = fit_text_map(latents, class_ids, text_embeds, tensors=tensors, processes=processes)
        tensors |= text_map._asdict()
    return Fitted(tensors, list(statistics.counts))


def check_family(family: str, components: int) -> None:
    """Raises ValueError on an unknown family and on a number of components it cannot have."""
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    if family in ("diagonal", "dct") and components:
        raise ValueError(f"components must be 0 with family {family!r}, got {components}")
    if family == "text" and not components:
        raise ValueError("components must be at least 1 with family 'text', got 0")


def _low_band(
    latents: Latents, class_ids: Tensor | None, shape: Sequence[int], *, band: int, **options: Any
) -> dict[str, Tensor]:
    """Principal components within the low band: all of it, so that projecting keeps the band as it is."""
    channels, height, width = shape
    if not 1 <= band <= min(height, width):
        raise ValueError(f"band must be in [1, {min(height, width)}], the size of the latents, got {band}")
    waves = low_frequencies(band, height, width)

    def coefficients(x: Tensor) -> Tensor:
        return torch.einsum("nchw,fhw->ncf", x.float().cpu(), waves)[..., None]

    latents = coefficients(latents) if isinstance(latents, Tensor) else _Mapped(latents, coefficients)
    within = fit_statistics(latents, class_ids, reserve=channels * band**2, **options)
    kept = within.components(channels * band**2)[..., 0]  # (n_classes, K, C, band^2)
    return {
        "components": torch.einsum("nkcf,fhw->nkchw", kept, waves).contiguous(),
        "variances": within.variances.float(),
    }


def low_frequencies(band: int, height: int, width: int) -> Tensor:
    """The orthonormal cosine waves (band^2, H, W) of the lowest frequencies of both axes, float32."""
    unit = torch.zeros(band * band, height, width, dtype=torch.float64)
    for index in range(band * band):
        unit[index, index // band, index % band] = 1
    return torch.from_numpy(idctn(unit.numpy(), axes=(1, 2), norm="ortho")).float()


class _Mapped:
    """Batches whose latents went through a function."""

    def __init__(
        self, batches: Iterable[tuple[Tensor, Tensor]], function: Callable[[Tensor], Tensor]
    ) -> None:
        self._batches, self._function = batches, function

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((self._function(x), ids) for x, ids in self._batches)

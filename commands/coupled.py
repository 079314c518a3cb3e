"""The initial noise that a request asks for: how a gallery's pictures hang together, what stands where."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from ..inference import couplings
from ..inference.contrastive import ContrastiveNoise
from ..inference.learned import LearnedCoupling
from ..inference.noise import Initializer
from ..inference.tickets.collection import TicketCollection
from ..inference.tickets.guidance import Paint, Soft
from ..inference.tickets.layouts import Layout
from ..inference.tickets.swap import Swap
from .request import Request


def initializer_of(request: Request) -> Initializer:
    """The coupling by its name or file, what a layout puts into its noise, and contrastive steps on top.

    Raises ValueError, naming the option, on names and files that are none, a coupling of another count, and
    a layout that the tickets cannot fill.
    """
    with _naming("--coupling"):
        noise = _coupling(request.coupling)
        noise.draw(request.count, (1, 2, 2), torch.Generator())
    if request.layout is not None:
        with _naming("--layout"):
            layout = Layout.load(request.layout)
        if request.tickets is not None:
            with _naming("--tickets"), warnings.catch_warnings(action="default"):
                noise = TicketCollection.load(request.tickets).layout_noise(layout, background=noise)
        if "swap" in request.guides:
            noise = Swap(layout, noise)
    if request.contrastive:
        noise = ContrastiveNoise(noise, steps=request.contrastive)
    return noise


def check_layout(request: Request, pipeline: Any) -> None:
    """Raises ValueError, naming the option, on tickets of another model and words that no prompt has."""
    from ..inference.text import tokenizers
    from ..inference.tickets.concept_tokens import concept_positions

    if request.layout is None:
        return
    if request.tickets is not None:
        with _naming("--tickets"):
            TicketCollection.load(request.tickets).check(pipeline)
    layout = Layout.load(request.layout)
    with _naming("--layout"):
        for gallery in request.galleries:
            concept_positions(tokenizers(pipeline)[0], gallery.prompt, layout.concepts)


@contextmanager
def guided(request: Request, pipeline: Any, prompt: str) -> Iterator[None]:
    """Attention that follows the request's layout for calls of one prompt, if it asks for that."""
    with ExitStack() as stack:
        if request.layout is not None:
            layout = Layout.load(request.layout)
            for name, kind in (("soft", Soft), ("paint", Paint)):
                if name in request.guides:
                    stack.enter_context(kind(layout).on(pipeline, prompt))
        yield


def _coupling(name: str | None) -> Any:
    if name is None:
        return couplings.Independent()
    return LearnedCoupling.load(name) if Path(name).suffix == ".safetensors" else couplings.by_name(name)


@contextmanager
def _naming(option: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(f"{option}: {error}") from error

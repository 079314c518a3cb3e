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
from ..inference.tickets.attention_maps import find_layer
from ..inference.tickets.collection import TicketCollection
from ..inference.tickets.first_pass import plain_unet
from ..inference.tickets.guidance import Paint, Soft, words_in
from ..inference.tickets.layouts import Layout
from ..inference.tickets.swap import Swap
from .request import Request


def check_files(request: Request) -> None:
    """Raises ValueError, naming the option, on coupling, layout and tickets that are none."""
    with _naming("--coupling"):
        _coupling(request.coupling).draw(request.count, (1, 2, 2), torch.Generator())
    if request.layout is not None:
        with _naming("--layout"):
            Layout.load(request.layout)
    if request.tickets is not None:
        with _naming("--tickets"):
            TicketCollection.load(request.tickets)


def initializer_of(request: Request, *, size: tuple[int, int] | None = None) -> Initializer | None:
    """The coupling by its name or file, what a layout puts into its noise, and contrastive steps on top.

    size: height and width of the latents, None: the tickets' own. None where each picture has its own seed.
    Raises ValueError, naming the option, on a layout that the tickets cannot fill.
    """
    if not request.draws_noise:
        return None
    noise = _coupling(request.coupling)
    if request.layout is not None:
        layout = Layout.load(request.layout)
        if request.tickets is not None:
            with _naming("--tickets"):
                tickets = TicketCollection.load(request.tickets)
                noise = tickets.layout_noise(layout, background=noise, size=size)
        if "swap" in request.guides:
            noise = Swap(layout, noise)
    if request.contrastive:
        noise = ContrastiveNoise(noise, steps=request.contrastive)
    return noise


def check_layout(request: Request, settled: Any, pipeline: Any) -> None:
    """Raises ValueError, naming the option, on tickets of another model or start, boxes outside the picture
    and words that a prompt lacks."""
    if request.layout is None:
        return
    factor = pipeline.vae_scale_factor
    size = settled.latent_size(pipeline)
    if request.tickets is not None:
        with _naming("--tickets"):
            collection = TicketCollection.load(request.tickets)
            collection.check(pipeline)
            _check_start(collection, settled)
    layout = Layout.load(request.layout)
    with _naming("--layout"), warnings.catch_warnings(action="ignore"):
        layout.fractions(size, pixels_per_latent=factor)
        for gallery in request.galleries:
            words_in(pipeline, gallery.prompt, layout.concepts)
        if "swap" in request.guides:
            _, block = find_layer(plain_unet(pipeline))
            if size[0] % block or size[1] % block:
                raise ValueError(f"--size must be multiples of {block * factor} for --guide swap")
            layout.regions(size, block=block, pixels_per_latent=factor)
        initializer_of(request, size=size)


def _check_start(collection: TicketCollection, settled: Any) -> None:
    """Raises ValueError where tickets were collected under another start than the pictures'."""
    start, name = collection.setting.start, collection.setting.class_name
    if settled.start is not None and (start == "none") != (settled.start == "none"):
        raise ValueError(f"start must be {start!r} as the tickets were collected, got {settled.start!r}")
    others = [own for own in settled.classes if own not in (name, None)] if name is not None else []
    if others:
        raise ValueError(f"class must be {name!r} as the tickets were collected, got {others[0]!r}")


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

"""What tickets were collected under: the layer, the prompts, the start and the sampler's first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from ..size import picture_size
from .attention_maps import find_layer
from .first_pass import first_timestep, plain_unet


@dataclass(frozen=True)
class Setting:
    """What scores depend on besides the model, the concepts and the noises.

    layer: of the map; block: latents a side of a block; latent_shape: (C, H, W); pixels_per_latent: a side;
    prompt: with two places `{}` for concepts, or none and all concepts in it; both_orders: whether a pair's
    scores are means over both; class_name, start: as for a pipeline; steps: of the sampler; timestep: its
    first.
    """

    layer: str
    block: int
    latent_shape: tuple[int, ...]
    pixels_per_latent: int
    prompt: str
    both_orders: bool
    class_name: str | None
    start: str
    steps: int
    timestep: int

    @classmethod
    def of(
        cls,
        pipeline: Any,
        *,
        layer: str | None,
        prompt: str,
        both_orders: bool,
        class_name: str | None,
        start: str | None,
        steps: int,
        height: int | None,
        width: int | None,
    ) -> Setting:
        """The setting for a pipeline; see `TicketCollection.build`.

        Raises ValueError on another start, prompt or layer, and on a UNet or a size that has no such maps.
        """
        check_prompt(prompt)
        if start not in ("mean", "none", None):
            raise ValueError(f"start must be 'mean' or None, got {start!r}")
        unet = plain_unet(pipeline)
        name, block = find_layer(unet, layer)
        shape = _latent_shape(pipeline, height, width)
        if unet.config.in_channels != shape[0]:
            raise ValueError(f"unet must take {shape[0]} channels, got {unet.config.in_channels}")
        if shape[1] % block or shape[2] % block:
            raise ValueError(
                f"latents must have sides that are multiples of {block}, got {shape[1]} x {shape[2]}"
            )
        return cls(
            layer=name,
            block=block,
            latent_shape=shape,
            pixels_per_latent=pipeline.vae_scale_factor,
            prompt=prompt,
            both_orders=both_orders,
            class_name=class_name,
            start=start if start and getattr(pipeline, "start_distribution", None) is not None else "none",
            steps=steps,
            timestep=first_timestep(pipeline, steps),
        )

    @property
    def orders(self) -> int:
        """How many texts score a pair of concepts."""
        return 2 if self.both_orders and "{}" in self.prompt else 1

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        return self.latent_shape[1] // self.block, self.latent_shape[2] // self.block


def pair_texts(
    pairs: Sequence[tuple[str, str]], *, prompt: str, both_orders: bool
) -> dict[str, tuple[str, ...]]:
    """The prompts that score these pairs of concepts, each with the concepts it is read for."""
    if "{}" not in prompt:
        return {prompt: tuple(dict.fromkeys(concept for pair in pairs for concept in pair))}
    ordered = [pair for a, b in pairs for pair in ([(a, b), (b, a)] if both_orders else [(a, b)])]
    return {prompt.format(*pair): pair for pair in ordered}


def texts_of(
    concepts: Sequence[str], *, prompt: str = "a {} and a {}", both_orders: bool = False
) -> list[str]:
    """The prompts that a collection of these concepts takes, each once a noise.

    Raises ValueError unless prompt has two places `{}` or none.
    """
    check_prompt(prompt)
    return list(pair_texts(list(combinations(concepts, 2)), prompt=prompt, both_orders=both_orders))


def check_prompt(prompt: str) -> None:
    """Refuses a prompt without two places for concepts or, as one that names them all, none."""
    if prompt.count("{}") not in (0, 2) or set(prompt.replace("{}", "")) & set("{}"):
        raise ValueError(f"prompt must have two places {{}} for concepts, or none, got {prompt!r}")


def check_concepts(concepts: Sequence[str]) -> None:
    """Refuses fewer than two concepts, and one twice, capitals and spaces apart."""
    if len(concepts) < 2:
        raise ValueError(
            "concepts must be at least two, so that each is scored against another: with one alone the maps "
            f"show where any object would be, got {len(concepts)}"
        )
    folded = [" ".join(concept.lower().split()) for concept in concepts]
    twice = next((name for name in folded if folded.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"concepts must differ, got {twice!r} twice")


def _latent_shape(pipeline: Any, height: int | None, width: int | None) -> tuple[int, int, int]:
    """(C, H, W) of the latents of a picture of this size in pixels, by default the pipeline's own."""
    factor, (height, width) = pipeline.vae_scale_factor, picture_size(pipeline, height, width)
    return pipeline.vae.config.latent_channels, height // factor, width // factor

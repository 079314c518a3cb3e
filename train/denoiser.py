"""Everything a training step runs, as one module: what accelerate wraps, shards and saves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .text import TextEmbeds, embed


class Denoiser(torch.nn.Module):
    """UNet, text encoders and, where there is one, a ControlNet.

    Only networks with trained weights are its submodules; frozen ones are used but neither wrapped nor saved.
    zero_dropped: dropped captions are zeros instead of the empty caption's embeddings, as the pipeline's
    unconditional branch is (SDXL's force_zeros_for_empty_prompt). pixels_per_latent: the VAE's factor.
    """

    unet: Any
    controlnet: Any

    def __init__(
        self,
        unet: torch.nn.Module,
        text_encoders: list[Any],
        controlnet: torch.nn.Module | None = None,
        *,
        zero_dropped: bool = False,
        pixels_per_latent: int = 8,
    ) -> None:
        super().__init__()
        self.zero_dropped, self.pixels_per_latent = zero_dropped, pixels_per_latent
        self.encoder_names = ["text_encoder", "text_encoder_2"][: len(text_encoders)]
        networks = {"unet": unet, "controlnet": controlnet} | dict(
            zip(self.encoder_names, text_encoders, strict=True)
        )
        for name, network in networks.items():
            if network is not None and any(p.requires_grad for p in network.parameters()):
                self.add_module(name, network)
            else:
                self.__dict__[name] = network

    @property
    def networks(self) -> list[Any]:
        """All networks, frozen ones too."""
        encoders = [getattr(self, name) for name in self.encoder_names]
        return [network for network in (self.unet, *encoders, self.controlnet) if network is not None]

    def trained(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Names and parameters of what is trained, always in the same order."""
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)

    def forward(
        self,
        noisy_latents: Tensor,
        timesteps: Tensor,
        *,
        dropped: Tensor,
        input_ids: Tensor | None = None,
        hidden: Tensor | None = None,
        pooled: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """The model's prediction, shaped like noisy_latents (B, C, H, W).

        Text comes as input_ids (B, encoders, L) or as cached embeddings: hidden (B, L, D), for SDXL also
        pooled (B, P). dropped (B,): whose captions were dropped. condition (B, 3, h, w): pixels in [0, 1].
        """
        if hidden is None:
            if input_ids is None:
                raise ValueError("text must be given as input_ids or as hidden, got neither")
            text = embed([getattr(self, name) for name in self.encoder_names], input_ids)
        else:
            text = TextEmbeds(hidden, pooled)
        if self.zero_dropped:
            text = text.zeroed(dropped)
        conditions: dict[str, Any] = {"encoder_hidden_states": text.hidden}
        if text.pooled is not None:
            time_ids = self.time_ids(noisy_latents)
            conditions["added_cond_kwargs"] = {"text_embeds": text.pooled, "time_ids": time_ids}
        if self.controlnet is not None:
            down, middle = self.controlnet(
                noisy_latents, timesteps, controlnet_cond=condition, return_dict=False, **conditions
            )
            conditions |= {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return self.unet(noisy_latents, timesteps, **conditions).sample

    def time_ids(self, latents: Tensor) -> Tensor:
        """SDXL's size conditions (B, 6): a picture of this size, uncropped, asked for at this size."""
        height, width = (side * self.pixels_per_latent for side in latents.shape[-2:])
        return latents.new_tensor([height, width, 0, 0, height, width]).expand(len(latents), 6)

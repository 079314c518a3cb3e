"""The shipped checkpoint: a diffusers folder, written beside, reloaded, compared, then renamed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file

from ..configs.schema import ModelConfig
from ..export.lora import FILE_NAME, read_tensors
from ..export.lora_names import diffusers_layers, portable_metadata
from ..export.ordered import save_ordered
from ..inference.generate import generate
from ..inference.load import load_pipeline
from ..inference.text import text_encoders, tokenizers
from ..pca import Sampler, StartDistribution
from ..whole_file import whole
from .models import Networks, load_base, merge_adapters, prepare_networks
from .preview import shipping_pipeline

TOLERANCE = 1  # in 8-bit levels


def export_model(
    config: ModelConfig,
    weights: Mapping[str, torch.Tensor],
    start_distribution: StartDistribution,
    *,
    run: Path,
    prompt: str,
    condition: Image.Image | None = None,
    device: str | torch.device = "cpu",
) -> Path:
    """Writes the trained weights over a fresh base, and the start distribution, to the run's `model/`.

    weights: trained parameters by name, float32. Adapters are merged and also kept in `lora/`, a trained
    word's embeddings in `token/`. Raises ValueError if the reloaded folder draws another picture.
    """
    networks = prepare_networks(load_base(config), config)
    unexpected = networks.denoiser.load_state_dict(dict(weights), strict=False).unexpected_keys
    if unexpected or set(weights) != {name for name, _ in networks.denoiser.trained()}:
        raise ValueError(f"trained weights must be those of the config, got {sorted(unexpected)[:3]}")
    networks.denoiser.requires_grad_(False).eval()
    if config.method == "lora" or config.text_encoder == "lora":
        _save_lora(networks, config, run / "lora")
    if config.text_encoder == "token":
        _save_token(networks, config, run / "token")
    for network in networks.denoiser.children():
        merge_adapters(network)
    shipped = shipping_pipeline(networks.pipeline, start_distribution, controlnet=networks.controlnet)

    with whole(run / "model") as beside:
        shipped.to("cpu").save_pretrained(beside)
        compare_reloaded(shipped, beside, prompt=prompt, condition=condition, device=device)
    return run / "model"


def compare_reloaded(
    shipped: Any,
    folder: Path,
    *,
    prompt: str,
    condition: Image.Image | None = None,
    device: str | torch.device = "cpu",
) -> None:
    """Raises ValueError unless the folder, loaded anew, draws the same picture within 1/255."""
    start = shipped.start_distribution
    names = [name for name, n in zip(start.class_names, start.config["counts"], strict=True) if n]

    def drawn(pipeline: Any) -> np.ndarray:
        pipeline.safety_checker = None  # it would compare black with black
        picture = generate(
            pipeline.to(device),
            [prompt],
            class_names=names[:1],
            images=None if condition is None else [condition],
            sampler=Sampler("DDIMScheduler", 20),
        )[0]
        pipeline.to("cpu")
        return np.asarray(picture, dtype=int)

    worst = int(np.abs(drawn(shipped) - drawn(load_pipeline(folder))).max())
    if worst > TOLERANCE:
        raise ValueError(f"reloaded model must draw the same picture within {TOLERANCE}/255, got {worst}/255")


def _save_lora(networks: Networks, config: ModelConfig, folder: Path) -> None:
    """Adapters in the layout that diffusers' load_lora_weights reads, rank and alpha with them."""
    encoders = text_encoders(networks.pipeline)
    adapted = {"unet": networks.pipeline.unet} if config.method == "lora" else {}
    if config.text_encoder == "lora":
        adapted |= dict(zip(("text_encoder", "text_encoder_2"), encoders, strict=False))
    options: dict[str, Any] = {}
    for name, network in adapted.items():
        state = get_peft_model_state_dict(network)
        options[f"{name}_lora_layers"] = diffusers_layers(state, text_encoder=name != "unet")
        metadata = portable_metadata(network.peft_config["default"].to_dict())
        options[f"{name}_lora_adapter_metadata"] = metadata
    writer = StableDiffusionPipeline if len(encoders) == 1 else StableDiffusionXLPipeline
    with whole(folder) as beside:
        writer.save_lora_weights(beside, **options)
        tensors, header = read_tensors(beside)
        save_ordered(tensors, beside / FILE_NAME, metadata=header)  # the same run writes the same bytes


def _save_token(networks: Networks, config: ModelConfig, folder: Path) -> None:
    """The new word's embeddings, in the layout that diffusers' load_textual_inversion reads."""
    word = config.token.word
    for number, (tokenizer, encoder) in enumerate(
        zip(tokenizers(networks.pipeline), text_encoders(networks.pipeline), strict=True)
    ):
        layer = encoder.get_input_embeddings()
        row = layer(torch.tensor([tokenizer.convert_tokens_to_ids(word)]))
        name = "learned_embeds" if not number else f"learned_embeds_{number + 1}"
        with whole(folder / f"{name}.safetensors") as beside:
            save_file({word: row.detach().contiguous()}, beside)

"""The networks of a run: what is loaded, what is trained, what is frozen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, DDPMScheduler
from diffusers.models.attention_processor import Attention
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, TrainableTokensConfig
from peft.tuners.tuners_utils import BaseTunerLayer

from ..configs.schema import ModelConfig, TokenConfig
from ..inference.load import load_pipeline
from ..inference.text import text_encoders, tokenizers
from .denoiser import Denoiser

TINY_BASE = Path(__file__).parents[1] / "assets" / "tiny-base"
# by peft's names: of the transformer blocks, the residual blocks, and the samplers between them
BLOCK_LAYERS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "conv_shortcut", "time_emb_proj", "conv"),
)


@dataclass
class Networks:
    """A base with what is trained of it: the pipeline's own modules, and all of them as one to train.

    idle: the modules that no training step runs, kept off the GPU between previews.
    """

    pipeline: Any
    controlnet: ControlNetModel | None
    denoiser: Denoiser
    idle: list[torch.nn.Module] = field(default_factory=list)

    def rest(self) -> None:
        """Moves what is idle to the CPU."""
        for module in self.idle:
            module.to("cpu")


def resolve_base(base: str) -> str:
    """`tiny-base` as the packaged folder, a run's folder as its model; any other base as it is."""
    if base == "tiny-base":
        return str(TINY_BASE)
    model = Path(base) / "model"
    is_run = (model / "model_index.json").is_file() and (Path(base) / "config.yaml").is_file()
    return str(model) if is_run else base


def load_base(config: ModelConfig) -> Any:
    """The base as a pipeline in float32. Raises ValueError on a base that is not one or lacks a VAE."""
    return load_pipeline(
        resolve_base(config.base), torch_dtype=torch.float32, config=config.base_config, plain=True
    )


def check_method(pipeline: Any, config: ModelConfig) -> None:
    """Raises ValueError on what the base cannot be trained by: LoRA targets that match no module, a token
    that is a word already, an initial word that is several."""
    if config.method == "lora":
        targets = _unet_targets(pipeline.unet, config.lora.targets)
        _check_targets("model.lora.targets", targets, [("UNet", pipeline.unet)])
    if config.text_encoder == "lora":
        encoders = [("text encoder", encoder) for encoder in text_encoders(pipeline)]
        _check_targets("model.lora.text_encoder_targets", config.lora.text_encoder_targets, encoders)
    if config.text_encoder == "token":
        for tokenizer in tokenizers(pipeline):
            _check_token(tokenizer, config.token)


def _check_targets(key: str, targets: list[str], networks: list[tuple[str, Any]]) -> None:
    for what, network in networks:
        modules = [name for name, _ in network.named_modules()]
        lost = [target for target in targets if not any(matches(name, target) for name in modules)]
        if lost:
            raise ValueError(f"{key} must match modules of the {what}, got {lost} which match none")


def _unet_targets(unet: Any, targets: list[str]) -> list[str]:
    """The targets by name; for `[all]` every linear layer and convolution of the blocks of this UNet."""
    if targets != ["all"]:
        return targets
    modules = [name for name, _ in unet.named_modules()]
    return [layer for layer in BLOCK_LAYERS if any(matches(name, layer) for name in modules)]


def matches(name: str, target: str) -> bool:
    """Whether peft takes a module of that name for a target: its name, or its end after a dot."""
    return name == target or name.endswith(f".{target}")


def _check_token(tokenizer: Any, config: TokenConfig) -> None:
    if config.word in tokenizer.get_vocab():
        raise ValueError(f"model.token.word must be a new word, got {config.word!r} which the tokenizer has")
    ids = tokenizer(config.initial, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise ValueError(
            f"model.token.initial must be one token of the tokenizer, got {config.initial!r} with {len(ids)}"
        )


def prepare_networks(
    pipeline: Any, config: ModelConfig, *, weight_dtype: torch.dtype = torch.float32
) -> Networks:
    """Freezes all but what the config trains, adds adapters, token and ControlNet if asked.

    Trained weights are float32, frozen ones weight_dtype, the VAE stays as it is. Networks that have
    trained weights are in training mode, the others in evaluation mode.
    """
    controlnet = None if config.controlnet is None else load_controlnet(pipeline, config.controlnet.source)
    encoders = text_encoders(pipeline)
    for network in (pipeline.vae, pipeline.unet, *encoders, controlnet):
        if network is not None:
            network.requires_grad_(False).eval()
    _train_unet(pipeline.unet, config)
    if config.text_encoder == "token":
        add_token(pipeline, config.token)
    for encoder in encoders:
        _train_text_encoder(encoder, config)
    if controlnet is not None:
        controlnet.requires_grad_(True)
    for network in (pipeline.unet, *encoders, controlnet):
        if network is not None:
            _cast_frozen(network, weight_dtype)
            cast_training_params(network)
            network.train(any(p.requires_grad for p in network.parameters()))
    denoiser = Denoiser(
        pipeline.unet,
        encoders,
        controlnet,
        zero_dropped=bool(pipeline.config.get("force_zeros_for_empty_prompt")),
        pixels_per_latent=pipeline.vae_scale_factor,
    )
    return Networks(pipeline, controlnet, denoiser)


def _cast_frozen(network: Any, dtype: torch.dtype) -> None:
    for parameter in network.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def load_controlnet(pipeline: Any, source: str) -> ControlNetModel:
    """A ControlNet with the UNet's weights, its outputs zero; or one to go on from."""
    if source != "unet":
        try:
            return ControlNetModel.from_pretrained(source)
        except OSError as error:
            raise ValueError(
                f"model.controlnet.source must be unet, a ControlNet's folder or a hub id, got {source!r}: "
                f"{error}"
            ) from error
    # one halving of the condition for each of the VAE's
    channels = (16, 32, 96, 256)[: len(pipeline.vae.config.block_out_channels)]
    return ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=channels)


def _train_unet(unet: Any, config: ModelConfig) -> None:
    if config.method == "full":
        unet.requires_grad_(True)
    elif config.method == "attention":
        for module in unet.modules():
            if isinstance(module, Attention):
                module.requires_grad_(True)
    elif config.method == "lora":
        unet.add_adapter(_lora(config, _unet_targets(unet, config.lora.targets)))


def _train_text_encoder(encoder: Any, config: ModelConfig) -> None:
    if config.text_encoder == "full":
        encoder.requires_grad_(True)
    elif config.text_encoder == "lora":
        encoder.add_adapter(_lora(config, config.lora.text_encoder_targets))


def _lora(config: ModelConfig, targets: list[str]) -> LoraConfig:
    lora = config.lora
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        init_lora_weights="gaussian",
        use_dora=lora.dora,
        use_rslora=lora.rslora,
    )


def add_token(pipeline: Any, config: TokenConfig) -> None:
    """Adds a word to every tokenizer and its row to every text encoder, the only one that is trained."""
    for tokenizer, encoder in zip(tokenizers(pipeline), text_encoders(pipeline), strict=True):
        (initial,) = tokenizer(config.initial, add_special_tokens=False).input_ids
        tokenizer.add_tokens([config.word])
        row = tokenizer.convert_tokens_to_ids(config.word)
        encoder.resize_token_embeddings(max(len(tokenizer), row + 1), mean_resizing=False)
        weight = encoder.get_input_embeddings().weight
        weight.requires_grad_(False)
        weight[row] = weight[initial]
        _pool_at_the_end(encoder, tokenizer.eos_token_id)
        encoder.add_adapter(TrainableTokensConfig(target_modules=["token_embedding"], token_indices=[row]))


def _pool_at_the_end(encoder: Any, eos_token_id: int) -> None:
    """Older configs say 2, which transformers takes for "at the highest id": that would be the new word."""
    encoder.config.eos_token_id = eos_token_id
    for module in encoder.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = eos_token_id


def merge_adapters(network: Any) -> None:
    """Adds every adapter's weights to the layer it adapts, which takes its place again."""
    for name, layer in list(network.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            network.set_submodule(name, layer.get_base_layer())
    if getattr(network, "peft_config", None):
        del network.peft_config
        network._hf_peft_config_loaded = False


def checkpoint_gradients(networks: Iterable[Any]) -> None:
    """Activations are computed again in the backward pass instead of being kept."""
    for network in networks:
        enable = getattr(network, "enable_gradient_checkpointing", None)
        (enable or network.gradient_checkpointing_enable)()


def training_schedule(pipeline: Any) -> tuple[torch.Tensor, str]:
    """The base's alphas_cumprod (T,) in float32 and its prediction_type."""
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    return scheduler.alphas_cumprod.float(), scheduler.config.prediction_type

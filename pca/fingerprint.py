"""Which VAE, and which text encoder, a start distribution belongs to: told by what they make of one fixed
picture and caption."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 0.02  # relative RMS: fp16 and fp32 casts of one VAE agree within it, another VAE does not
REFERENCE_TEXT = "a photograph of a red product on white"
COMPARED = (
    "in_channels",
    "latent_channels",
    "block_out_channels",
    "layers_per_block",
    "scaling_factor",
    "shift_factor",
)


def encode_mean(vae: Any, pixels: Tensor) -> Tensor:
    """Scaled latents of pictures: the VAE's posterior mean, less its shift, times its scaling factor.

    pixels: (B, 3, H, W) in [-1, 1], any dtype and device. Returns (B, C, h, w) float32 where the VAE runs.
    """
    with torch.no_grad():
        mean = vae.encode(pixels.to(runs_on(vae), vae.dtype)).latent_dist.mean.float()
    return (mean - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor


def runs_on(network: Any) -> torch.device:
    """Where a network computes: an offloaded one is moved there only while it is called."""
    for module in network.modules():
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return network.device


def reference_picture(size: int) -> Tensor:
    """The drawn test picture, (1, 3, size, size) in [-1, 1]: gradients and a striped disc."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    disc = ((x - 0.2) ** 2 + (y + 0.1) ** 2 < 0.25).float()
    stripes = torch.sin(8 * torch.pi * (x + y))
    red, green = x * (1 - disc) + disc, y * (1 - disc) - disc
    return torch.stack([red, green, 0.6 * stripes * disc - 0.4 * x * y])[None]


def vae_fingerprint(vae: Any) -> dict[str, Any]:
    """What tells one VAE from another, as JSON: config values that shape its latents, its test latents.

    Raises ValueError if the VAE's latents of the test picture are not finite.
    """
    config = {key: vae.config.get(key) for key in COMPARED}
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    size = factor * math.ceil(64 / factor)
    # In float32 whatever the weights were cast to: half-precision activations alone can cost the tolerance.
    vae = vae if vae.dtype == torch.float32 else copy.deepcopy(vae).float()
    latents = encode_mean(vae, reference_picture(size)).cpu()
    if not torch.isfinite(latents).all():
        raise ValueError("VAE must encode the test picture to finite latents, got nan or inf")
    return {
        "config": {key: list(v) if isinstance(v, tuple) else v for key, v in config.items()},
        "latent_shape": list(latents.shape[1:]),
        # One line of text: a list would be a thousand lines of indented JSON.
        "latents": " ".join(f"{v:.5g}" for v in latents.flatten().tolist()),
    }


def check_vae(stored: Mapping[str, Any] | None, vae: Any) -> None:
    """Refuses a VAE other than the one a start distribution was fitted with; None stands for no fingerprint.

    stored: what `vae_fingerprint` gave. Raises ValueError with both values on the first difference.
    """
    if stored is None:
        return
    found = vae_fingerprint(vae)
    for key in COMPARED:
        ours, theirs = stored["config"].get(key), found["config"][key]
        if ours != theirs:
            raise ValueError(f"VAE {key} must be {ours} as in the start distribution, got {theirs}")
    expected, actual = _latents(stored), _latents(found)
    if expected.shape != actual.shape:
        raise ValueError(
            f"VAE test latents must have shape {tuple(expected.shape)} as in the start distribution, "
            f"got {tuple(actual.shape)}"
        )
    _check_agreement(expected, actual, what="VAE", tested="latents")


def text_fingerprint(pooled_text: Callable[[list[str]], Tensor]) -> dict[str, Any]:
    """What tells one text encoder from another, as JSON: its pooled embedding of one fixed caption."""
    return {"embedding": " ".join(f"{v:.5g}" for v in pooled_text([REFERENCE_TEXT])[0].tolist())}


def check_text(stored: Mapping[str, Any] | None, pooled_text: Callable[[list[str]], Tensor]) -> None:
    """Refuses text encoders other than those a start distribution was fitted with; None stands for no
    fingerprint.

    stored: what `text_fingerprint` gave; pooled_text: captions -> (B, E). Raises ValueError with both values.
    """
    if stored is None:
        return
    expected = torch.tensor([float(v) for v in stored["embedding"].split()])
    actual = pooled_text([REFERENCE_TEXT])[0].cpu().float()
    if expected.shape != actual.shape:
        raise ValueError(
            f"text encoder must give {len(expected)} values a text as in the start distribution, "
            f"got {len(actual)}"
        )
    _check_agreement(expected, actual, what="text encoder", tested="embedding's values")


def _check_agreement(expected: Tensor, actual: Tensor, *, what: str, tested: str) -> None:
    rms, difference = expected.square().mean().sqrt(), (actual - expected).square().mean().sqrt()
    if not difference <= TOLERANCE * rms:
        raise ValueError(
            f"{what} must be the one the start distribution was fitted with: its test {tested} must agree "
            f"within {TOLERANCE:.0%} of their RMS {rms:.4f}, got an RMS difference of {difference:.4f}"
        )


def _latents(fingerprint: Mapping[str, Any]) -> Tensor:
    values = torch.tensor([float(v) for v in fingerprint["latents"].split()])
    return values.reshape(fingerprint["latent_shape"])

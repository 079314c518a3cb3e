"""The negative control: small variational autoencoders, which draw pictures from noise as well."""

from __future__ import annotations

from pathlib import Path

import torch
from onbrand.assets.loop import optimise
from pictures import SHAPE
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

CODE, WIDTH, BATCH, STEPS = 32, 512, 128, 3000
VARIANCE = 0.1  # of the decoder's normal distribution: the KL term's weight against the squared error


class SmallVae(nn.Module):
    """Scaled latents (n, 4, 8, 8) to `CODE` numbers, standard normal by the KL term, and back."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        values = SHAPE[0] * SHAPE[1] * SHAPE[2]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = nn.Sequential(nn.Flatten(), *_layers(values), nn.Linear(WIDTH, 2 * CODE))
            self.decoder = nn.Sequential(*_layers(CODE), nn.Linear(WIDTH, values), nn.Unflatten(1, SHAPE))

    def losses(self, x_0: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Squared error and KL, sums over a picture, means over the batch."""
        mean, log_variance = self.encoder(x_0).chunk(2, dim=1)
        decoded = self.decoder(mean + (log_variance / 2).exp() * noise)
        kl = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
        return (decoded - x_0).square().flatten(1).sum(1).mean(), kl.mean()


def _layers(width: int) -> list[nn.Module]:
    return [nn.Linear(width, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU()]


def trained_vae(seed: int, x_0s: Tensor, work: Path) -> SmallVae:
    """The trained autoencoder; trained if it is not there."""
    file, vae = work / "models" / f"vae-seed{seed}.safetensors", SmallVae(seed)
    if not file.exists():

        def loss_of(generator: torch.Generator) -> Tensor:
            generator.manual_seed(generator.initial_seed() + 1_000_003 * (1 + seed))
            rows = torch.randint(len(x_0s), (BATCH,), generator=generator)
            error, kl = vae.losses(x_0s[rows], torch.randn(BATCH, CODE, generator=generator))
            return (error / (2 * VARIANCE) + kl) / x_0s[0].numel()

        optimise(
            vae, loss_of, name=f"vae-seed{seed}", work=work / "training", steps=STEPS, learning_rate=1e-3
        )
        save_file(vae.state_dict(), file)
    vae.load_state_dict(load_file(file))
    return vae.eval().requires_grad_(False)

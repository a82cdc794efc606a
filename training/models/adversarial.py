"""Autoencoder with adversaries: a critic on the latent, and a second decoder on the rebuilt windows."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.losses import Batch, penalties, reconstruction, seen
from training.models.base import Autoencoder, Shape, stack
from training.recipe import Recipe


class Adversarial(Autoencoder):
    """Adversarially regularised latent (Makhzani et al. 2015) and two decoders that play on windows (USAD,
    Audibert et al. 2020).

    autoencoder : rebuilds, makes latents that the critic takes for N(0, I), and rebuilt windows that survive the
                  second decoder.
    second      : rebuilds real windows, and is off by a margin on those that the first decoder made. USAD's own term
                  is unbounded below and diverges; the margin is ours.
    critic      : tells latents from draws of N(0, I).
    """

    parts: ClassVar[tuple[str, ...]] = ("autoencoder", "second", "critic")

    def __init__(self, shape: Shape, recipe: Recipe) -> None:
        super().__init__(shape, recipe)
        wide, out = shape.rows * shape.inputs, shape.rows * shape.sensors
        self.down = stack([wide, *recipe.widths, shape.latent], recipe)
        self.up = stack([shape.latent, *reversed(recipe.widths), out], recipe)
        self.up_second = stack([shape.latent, *reversed(recipe.widths), out], recipe)
        self.critic = nn.Sequential(nn.Linear(shape.latent, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64),
                                    nn.LeakyReLU(0.2), nn.Linear(64, 1))

    def weights_of(self, part: str) -> list[nn.Parameter]:
        modules = {"autoencoder": (self.down, self.up), "second": (self.up_second,), "critic": (self.critic,)}[part]
        return [weight for module in modules for weight in module.parameters()]

    def encode(self, x: Tensor) -> Tensor:
        return self.down(x.flatten(1))

    def decode(self, z: Tensor) -> Tensor:
        return self._fold(self.up(z))

    def newest(self, z: Tensor) -> Tensor:
        last = self.up[-1]
        assert isinstance(last, nn.Linear)
        rows = slice(-self.shape.sensors, None)
        return functional.linear(self.up[:-1](z), last.weight[rows], last.bias[rows])

    def objective(self, part: str, batch: Batch, epoch: int) -> Tensor:
        weight = self.recipe.adversary * min(1.0, epoch / 5.0)       # adversaries come in over five epochs
        if part == "critic":
            z = self.encode(batch.x).detach()
            prior, posterior = self.critic(torch.randn_like(z)), self.critic(z)
            return functional.softplus(-prior).mean() + functional.softplus(posterior).mean()
        if part == "second":
            with torch.no_grad():
                z = self.encode(batch.x)
                again = self._encode_again(self.decode(z), batch)
            own = reconstruction(self.recipe.loss, self._fold(self.up_second(z)), batch)
            made = reconstruction(self.recipe.loss, self._fold(self.up_second(again)), batch)
            return own + weight * functional.relu(1.0 - made)
        x = seen(batch, self.recipe)
        z = self.encode(x)
        rebuilt = self.decode(z)
        loss = reconstruction(self.recipe.loss, rebuilt, batch)
        if weight:
            survived = self._fold(self.up_second(self._encode_again(rebuilt, batch)))
            passed = functional.softplus(-self.critic(z)).mean()
            loss = loss + weight * (passed + reconstruction(self.recipe.loss, survived, batch))
        return loss + penalties(self, z, x)

    def _fold(self, flat: Tensor) -> Tensor:
        return flat.unflatten(1, (self.shape.rows, self.shape.sensors))      # (B,T*S) -> (B,T,S)

    def _encode_again(self, rebuilt: Tensor, batch: Batch) -> Tensor:
        """The rebuilt window through the encoder, context channels as they were."""
        if self.shape.inputs == self.shape.sensors:
            return self.encode(rebuilt)
        x = batch.x.clone()
        x[:, :, list(self.shape.scored)] = rebuilt
        return self.encode(x)

"""Variational autoencoder: sampled in training, its mean path exported, so that scores are deterministic."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.models.base import Autoencoder, Shape, stack
from training.recipe import Recipe


class Variational(Autoencoder):
    """Gaussian posterior with the reparameterisation trick (Kingma and Welling 2014), KL weight `beta` warmed up."""

    def __init__(self, shape: Shape, recipe: Recipe) -> None:
        super().__init__(shape, recipe)
        self.down = stack([shape.rows * shape.inputs, *recipe.widths, 2 * shape.latent], recipe)
        self.up = stack([shape.latent, *reversed(recipe.widths), shape.rows * shape.sensors], recipe)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of z, each (B,D)."""
        mean, log_variance = self.down(x.flatten(1)).chunk(2, dim=1)
        return mean, log_variance.clamp(-8.0, 8.0)

    def encode(self, x: Tensor) -> Tensor:
        return self.posterior(x)[0]

    def draw(self, x: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.posterior(x)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(1).mean()
        share = min(1.0, (epoch + 1) / self.recipe.beta_warmup) if self.recipe.beta_warmup else 1.0
        return z, self.recipe.beta * share * divergence

    def decode(self, z: Tensor) -> Tensor:
        return self.up(z).unflatten(1, (self.shape.rows, self.shape.sensors))   # (B,D) -> (B,T,S)

    def newest(self, z: Tensor) -> Tensor:
        last = self.up[-1]
        assert isinstance(last, nn.Linear)
        rows = slice(-self.shape.sensors, None)
        return functional.linear(self.up[:-1](z), last.weight[rows], last.bias[rows])

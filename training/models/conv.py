"""Convolutional autoencoder over time, or over the plane of time and channels."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from training.models.base import ACTIVATIONS, Autoencoder, Shape
from training.recipe import Recipe


class Conv(Autoencoder):
    """Strided convolutions to a flat latent and transposed ones back (Masci et al. 2011).

    Along time (channels are the convolution's channels) or, with `plane`, over T x I as a picture. Each width of
    `hidden` halves the length once. The decoder rebuilds a length that is a multiple and is cut to T.
    """

    def __init__(self, shape: Shape, recipe: Recipe) -> None:
        super().__init__(shape, recipe)
        widths = [1 if recipe.plane else shape.inputs, *recipe.widths]
        self.down = nn.Sequential(*[
            layer for wide, narrow in pairwise(widths) for layer in self._halve(wide, narrow)])
        with torch.no_grad():
            probe = self.down.eval()(self._lay_out(torch.zeros(2, shape.rows, shape.inputs)))
        self.down.train()
        self.folded = tuple(probe.shape[1:])                         # (width, T', [I'])
        self.to_latent = nn.Linear(probe[0].numel(), shape.latent)
        self.from_latent = nn.Linear(shape.latent, probe[0].numel())
        ups = list(reversed(recipe.widths))
        self.up = nn.Sequential(*[layer for wide, narrow in pairwise(ups) for layer in self._double(wide, narrow)],
                                *self._double(ups[-1], ups[-1]))
        self.out: nn.Module = nn.Conv1d(ups[-1], shape.sensors, 3, padding=1)
        if recipe.plane:
            self.out = nn.Conv2d(ups[-1], 1, 3, padding=1)

    def _lay_out(self, x: Tensor) -> Tensor:
        return x.unsqueeze(1) if self.recipe.plane else x.transpose(1, 2)   # (B,1,T,I) or (B,I,T)

    def _halve(self, wide: int, narrow: int) -> list[nn.Module]:
        kind = nn.Conv2d if self.recipe.plane else nn.Conv1d
        return [kind(wide, narrow, 5, stride=2, padding=2), *self._after(narrow)]

    def _double(self, wide: int, narrow: int) -> list[nn.Module]:
        kind = nn.ConvTranspose2d if self.recipe.plane else nn.ConvTranspose1d
        return [kind(wide, narrow, 4, stride=2, padding=1), *self._after(narrow)]

    def _after(self, width: int) -> list[nn.Module]:
        recipe = self.recipe
        layers: list[nn.Module] = []
        if recipe.norm == "batch":
            layers.append((nn.BatchNorm2d if recipe.plane else nn.BatchNorm1d)(width))
        elif recipe.norm == "layer":
            layers.append(nn.GroupNorm(1, width))                    # layer norm over channels and length
        layers.append(ACTIVATIONS[recipe.activation]())
        if recipe.dropout:
            layers.append(nn.Dropout(recipe.dropout))
        return layers

    def encode(self, x: Tensor) -> Tensor:
        return self.to_latent(self.down(self._lay_out(x)).flatten(1))

    def decode(self, z: Tensor) -> Tensor:
        folded = self.from_latent(z).unflatten(1, self.folded)       # (B, width, T', [I'])
        wide = self.out(self.up(folded))
        if self.recipe.plane:
            return wide[:, 0, -self.shape.rows:, list(self.shape.scored)]   # (B,T,S)
        return wide[..., -self.shape.rows:].transpose(1, 2)          # (B,S,T) -> (B,T,S)

"""Dense autoencoder, with a linear path beside it that starts at the principal components."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.models.base import Autoencoder, Shape, stack
from training.recipe import Recipe


class Dense(Autoencoder):
    """Multilayer perceptron over the flattened window (Hinton and Salakhutdinov 2006).

    With `linear_path` encoder and decoder are each a straight line plus the network; the lines begin at PCA and the
    network's last layers at 0, so the model begins as PCA and the network learns what a plane can't hold.
    """

    def __init__(self, shape: Shape, recipe: Recipe) -> None:
        super().__init__(shape, recipe)
        wide, out = shape.rows * shape.inputs, shape.rows * shape.sensors
        self.down = stack([wide, *recipe.widths, shape.latent], recipe)
        self.up = stack([shape.latent, *reversed(recipe.widths), out], recipe)
        self.line_down = nn.Linear(wide, shape.latent) if recipe.linear_path else None
        self.line_up = nn.Linear(shape.latent, out, bias=False) if recipe.linear_path else None

    def encode(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)                                          # (B,T,I) -> (B,T*I)
        z = self.down(flat)
        return z if self.line_down is None else z + self.line_down(flat)

    def decode(self, z: Tensor) -> Tensor:
        flat = self.up(z)                                            # (B,D) -> (B,T*S)
        if self.line_up is not None:
            flat = flat + self.line_up(z)
        return flat.unflatten(1, (self.shape.rows, self.shape.sensors))

    def newest(self, z: Tensor) -> Tensor:
        """Through the last layer's rows of the newest row alone: S outputs instead of T*S."""
        last = self.up[-1]
        assert isinstance(last, nn.Linear)
        row = functional.linear(self.up[:-1](z), last.weight[-self.shape.sensors:], last.bias[-self.shape.sensors:])
        return row if self.line_up is None else row + functional.linear(z, self.line_up.weight[-self.shape.sensors:])

    @torch.no_grad()
    def begin(self, windows: Tensor, target: Tensor) -> None:
        if self.line_down is None or self.line_up is None:
            return
        flat, wanted = windows.flatten(1), target.flatten(1)
        middle, wanted_middle = flat.mean(0), wanted.mean(0)
        rank = min(self.shape.latent, *flat.shape)
        _, _, axes = torch.linalg.svd(flat - middle, full_matrices=False)
        axes = axes[:rank]                                           # (rank, T*I)
        z = (flat - middle) @ axes.T
        spread = z.std(0).clamp_min(1e-6)                            # latents of unit spread: even gradients
        line = torch.linalg.lstsq(z / spread, wanted - wanted_middle).solution   # (rank, T*S)
        for layer in (self.down[-1], self.up[-1]):
            assert isinstance(layer, nn.Linear)
            layer.weight.mul_(0.0)
            layer.bias.zero_()
        self.line_down.weight.zero_()
        self.line_down.weight[:rank] = axes / spread[:, None]
        self.line_down.bias.zero_()
        self.line_down.bias[:rank] = -(axes @ middle) / spread
        self.line_up.weight.zero_()
        self.line_up.weight[:, :rank] = line.T
        last = self.up[-1]
        assert isinstance(last, nn.Linear)
        last.bias.copy_(wanted_middle)

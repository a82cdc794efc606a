"""What every family keeps: a window in, a latent vector, the scored channels out."""

from collections.abc import Callable
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from training.losses import Batch, objective
from training.recipe import Recipe

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


class Shape(NamedTuple):
    """Sizes of a model: T rows, I inputs (sensors and context), D latent; `scored` are the S places of the scored
    channels among the inputs."""

    rows: int
    inputs: int
    scored: tuple[int, ...]
    latent: int

    @property
    def sensors(self) -> int:
        """S."""
        return len(self.scored)


class Autoencoder(nn.Module):
    """Base of all families: `encode` (B,T,I) -> (B,D), `decode` (B,D) -> (B,T,S).

    A family is trained in `parts`, each with its own optimiser; `objective(part, ...)` is what that part lowers.
    Context channels are inputs only: the model sees them and rebuilds the scored channels alone.
    """

    parts: ClassVar[tuple[str, ...]] = ("autoencoder",)

    def __init__(self, shape: Shape, recipe: Recipe) -> None:
        super().__init__()
        self.shape = shape
        self.recipe = recipe

    def encode(self, x: Tensor) -> Tensor:
        """(B,T,I) scaled and filled -> (B,D)."""
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor:
        """(B,D) -> (B,T,S)."""
        raise NotImplementedError

    def newest(self, z: Tensor) -> Tensor:
        """(B,D) -> (B,S), the last row of `decode`; a family that can leave the other rows out does so."""
        return self.decode(z)[:, -1]

    def draw(self, x: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """The latent as training sees it, (B,D), and the penalty on it; a variational family samples here."""
        return self.encode(x), x.new_zeros(())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B,T,I) -> rebuilt (B,T,S), latent (B,D); deterministic in evaluation mode."""
        z = self.encode(x)
        return self.decode(z), z

    def objective(self, part: str, batch: Batch, epoch: int) -> Tensor:
        """The scalar that `part` lowers on this batch."""
        return objective(self, batch, epoch)

    def weights_of(self, part: str) -> list[nn.Parameter]:
        """The parameters that `part` moves."""
        return list(self.parameters())

    def begin(self, windows: Tensor, target: Tensor) -> None:
        """Data-dependent start, called once before a training from scratch: windows (N,T,I), target (N,T,S)."""


def stack(widths: list[int], recipe: Recipe) -> nn.Sequential:
    """Linear layers of these widths with norm, activation and dropout after each but the last."""
    layers: list[nn.Module] = []
    for place, (wide, narrow) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(wide, narrow))
        if place < len(widths) - 2:
            layers += between(narrow, recipe)
    return nn.Sequential(*layers)


def between(width: int, recipe: Recipe) -> list[nn.Module]:
    """What stands between two linear layers: norm, activation, dropout."""
    layers: list[nn.Module] = []
    if recipe.norm == "batch":
        layers.append(nn.BatchNorm1d(width))
    elif recipe.norm == "layer":
        layers.append(nn.LayerNorm(width))
    layers.append(ACTIVATIONS[recipe.activation]())
    if recipe.dropout:
        layers.append(nn.Dropout(recipe.dropout))
    return layers


def initialise(model: nn.Module, how: str) -> None:
    """Xavier (Glorot and Bengio 2010), He (2015) or orthogonal (Saxe 2013) for every matrix; biases 0.

    `default` leaves torch's own. Vectors (biases, norms) are never touched by name, only by what they are.
    """
    rules: dict[str, Callable[[Tensor], Tensor]] = {"xavier": nn.init.xavier_uniform_, "he": nn.init.kaiming_normal_,
                                                   "orthogonal": nn.init.orthogonal_}
    if how not in rules:
        return
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm):
                continue
            for name, weight in module.named_parameters(recurse=False):
                if weight.ndim >= 2:
                    rules[how](weight)
                elif "bias" in name:
                    weight.zero_()

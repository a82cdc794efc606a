"""Recurrent autoencoder: sequence to sequence, with GRU or LSTM cells."""

from torch import Tensor, nn

from training.models.base import Autoencoder, Shape
from training.recipe import Recipe


class Recurrent(Autoencoder):
    """The encoder reads the window; the decoder writes it backwards, newest row first (Malhotra et al. 2016).

    Backwards is what makes `newest` one step of the decoder instead of T.
    """

    def __init__(self, shape: Shape, recipe: Recipe) -> None:
        super().__init__(shape, recipe)
        kind = nn.LSTM if recipe.cell == "lstm" else nn.GRU
        width = recipe.widths[0]
        self.reader = kind(shape.inputs, width, num_layers=len(recipe.widths), batch_first=True,
                           dropout=recipe.dropout if len(recipe.widths) > 1 else 0.0)
        self.to_latent = nn.Linear(width, shape.latent)
        self.writer = kind(shape.latent, width, batch_first=True)
        self.out = nn.Linear(width, shape.sensors)

    def encode(self, x: Tensor) -> Tensor:
        states, _ = self.reader(x)                                   # (B,T,width)
        return self.to_latent(states[:, -1])

    def decode(self, z: Tensor) -> Tensor:
        return self._write(z, self.shape.rows).flip(1)               # newest first -> oldest first

    def newest(self, z: Tensor) -> Tensor:
        return self._write(z, 1)[:, 0]

    def _write(self, z: Tensor, rows: int) -> Tensor:
        states, _ = self.writer(z.unsqueeze(1).expand(-1, rows, -1))   # (B,D) -> (B,rows,width)
        return self.out(states)

"""Recursive autoencoder: a tree of merges over the window with shared weights, and its unfolding."""

import torch
from torch import Tensor, nn

from training.models.base import ACTIVATIONS, Autoencoder, Shape
from training.recipe import Recipe


class Recursive(Autoencoder):
    """Rows are leaves; the same `merge` joins two neighbours at every level up to one root, and the same `split`
    unfolds it again (unfolding recursive autoencoder, Socher et al. 2011, with a balanced tree instead of a parse).

    T is padded in front with its oldest row to a power of two; the padding is cut off again.
    """

    def __init__(self, shape: Shape, recipe: Recipe) -> None:
        super().__init__(shape, recipe)
        width = recipe.widths[0]
        self.levels = max(1, (shape.rows - 1).bit_length())
        act = ACTIVATIONS[recipe.activation]
        self.leaf = nn.Linear(shape.inputs, width)
        self.merge = nn.Sequential(nn.Linear(2 * width, 2 * width), act(), nn.Linear(2 * width, width))
        self.split = nn.Sequential(nn.Linear(width, 2 * width), act(), nn.Linear(2 * width, 2 * width))
        self.norm_up, self.norm_down = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_latent, self.from_latent = nn.Linear(width, shape.latent), nn.Linear(shape.latent, width)
        self.out = nn.Linear(width, shape.sensors)

    def encode(self, x: Tensor) -> Tensor:
        missing = (1 << self.levels) - self.shape.rows
        if missing:
            x = torch.cat([x[:, :1].expand(-1, missing, -1), x], dim=1)
        nodes = self.leaf(x)                                         # (B,2^k,width)
        for _ in range(self.levels):
            pairs = nodes.unflatten(1, (-1, 2))                      # (B,n/2,2,width)
            nodes = self.norm_up(self.merge(pairs.flatten(2)) + pairs.mean(2))
        return self.to_latent(nodes[:, 0])

    def decode(self, z: Tensor) -> Tensor:
        nodes = self.from_latent(z).unsqueeze(1)                     # (B,1,width), the root
        for _ in range(self.levels):
            nodes = self.norm_down(self._children(nodes).flatten(1, 2))   # (B,2n,width)
        return self.out(nodes)[:, -self.shape.rows:]

    def newest(self, z: Tensor) -> Tensor:
        """Down the right edge of the tree alone: one node a level."""
        node = self.from_latent(z).unsqueeze(1)
        for _ in range(self.levels):
            node = self.norm_down(self._children(node)[:, :, 1])
        return self.out(node[:, 0])

    def _children(self, nodes: Tensor) -> Tensor:
        halves = self.split(nodes).unflatten(2, (2, -1))             # (B,n,2,width)
        return halves + nodes.unsqueeze(2)

"""What training lowers: masked reconstruction losses and the penalties that any family can take."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from training.recipe import Recipe

if TYPE_CHECKING:
    from training.models.base import Autoencoder


@dataclass(frozen=True, slots=True)
class Batch:
    """One mini-batch on the training device.

    x      : (B,T,I) scaled, filled; what the model sees.
    target : (B,T,S) the scored channels, 0 where missing.
    weight : (B,T,S) 0 where the target is missing, else 1, times `newest_weight` in the last row;
             None when nothing is missing and all rows count alike, which is the fast way.
    """

    x: Tensor
    target: Tensor
    weight: Tensor | None


def reconstruction(kind: str, rebuilt: Tensor, batch: Batch) -> Tensor:
    """Mean loss over the counted targets; scalar. Missing targets neither count nor pass a gradient.

    cross_entropy compares the logistic of both, so that its least lies where `rebuilt` is the target, in scaled units.
    """
    if kind == "mse" and batch.weight is None:
        return functional.mse_loss(rebuilt, batch.target)   # one pass each way, for the loss that is asked for most
    if kind == "mse":
        error = (rebuilt - batch.target) ** 2
    elif kind == "mae":
        error = (rebuilt - batch.target).abs()
    elif kind == "huber":
        error = functional.huber_loss(rebuilt, batch.target, reduction="none")
    else:
        error = functional.binary_cross_entropy_with_logits(rebuilt, batch.target.sigmoid(), reduction="none")
    if batch.weight is None:
        return error.mean()
    return (error * batch.weight).sum() / batch.weight.sum().clamp_min(1e-12)


def corrupt(x: Tensor, recipe: Recipe) -> Tensor:
    """Denoising input (Vincent et al. 2008): Gaussian noise and blanked values; the target stays clean."""
    if recipe.denoise:
        x = x + recipe.denoise * torch.randn_like(x)
    if recipe.drop_inputs:
        x = x * (torch.rand_like(x) >= recipe.drop_inputs)
    return x


def contraction(z: Tensor, x: Tensor) -> Tensor:
    """Mean squared Frobenius norm of dz/dx (Rifai et al. 2011), by one random projection a batch (Hutchinson)."""
    direction = torch.randn_like(z)
    (slope,) = torch.autograd.grad(z, x, grad_outputs=direction, create_graph=True)
    return slope.square().flatten(1).sum(1).mean()


def seen(batch: Batch, recipe: Recipe) -> Tensor:
    """What the encoder is given in training: corrupted, and open to a gradient where the contraction asks for one."""
    x = corrupt(batch.x, recipe)
    return x.detach().requires_grad_() if recipe.contractive else x


def penalties(model: "Autoencoder", z: Tensor, x: Tensor) -> Tensor | float:
    """The recipe's penalties on the latent and the weights, which any family can take; scalar, 0 where there are none.

    z : (B,D), made from x, from `seen`.
    """
    recipe = model.recipe
    total: Tensor | float = 0.0
    if recipe.sparse:
        total = total + recipe.sparse * z.abs().mean()
    if recipe.contractive:
        total = total + recipe.contractive * contraction(z, x)
    if recipe.l1:
        weights = model.weights_of(model.parts[0])
        total = total + recipe.l1 * sum(weight.abs().sum() for weight in weights)
    return total


def objective(model: "Autoencoder", batch: Batch, epoch: int) -> Tensor:
    """Reconstruction plus the recipe's penalties: the loss of every family that has one part."""
    x = seen(batch, model.recipe)
    z, penalty = model.draw(x, epoch)
    return reconstruction(model.recipe.loss, model.decode(z), batch) + penalty + penalties(model, z, x)

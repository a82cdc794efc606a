"""The families, by name."""

from training.models.adversarial import Adversarial
from training.models.base import Autoencoder, Shape, initialise
from training.models.conv import Conv
from training.models.dense import Dense
from training.models.recurrent import Recurrent
from training.models.recursive import Recursive
from training.models.vae import Variational

BY_NAME: dict[str, type[Autoencoder]] = {
    "dense": Dense, "conv": Conv, "vae": Variational, "recurrent": Recurrent, "recursive": Recursive,
    "adversarial": Adversarial,
}

__all__ = ["BY_NAME", "Autoencoder", "Shape", "initialise"]

"""The recipe: everything of a training run that a person may choose, in one typed, frozen place.

A recipe and the data decide the weights on CPU, so the bundle's manifest carries it whole. No torch in here.
"""

import difflib
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from pipeline.errors import BadInput

Family = Literal["dense", "conv", "vae", "recurrent", "recursive", "adversarial"]
FAMILIES: tuple[str, ...] = ("dense", "conv", "vae", "recurrent", "recursive", "adversarial")
WIDTHS = {"dense": (64,), "conv": (32, 16), "vae": (64,), "recurrent": (32,), "recursive": (64,), "adversarial": (64,)}
BASELINES: tuple[str, ...] = ("raw", "pca", "var")
AFTER_DIVERGING: tuple[str, ...] = ("rate", "schedule", "warmup_steps", "clip")
"""Settings of the descent that may be others when a run goes on after its loss was no number."""
WITHOUT_TORCH: tuple[str, ...] = (*BASELINES, "linear")   # linear: the light ensemble of `training.ensemble`


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How one model is built and trained.

    The model. `latent` is D, 0 chooses 1.5 a scored channel (4 to 64); `hidden` are the widths from input to latent
    (channels of the convolutions, the one width of recursive nodes), empty for the family's own.
    linear_path : dense only; a straight line beside the network, begun at the principal components, so that
                  training starts at PCA's error and can only gain on the held-out part.
    cell        : gru or lstm, for `recurrent`.
    plane       : conv only; treats a window as a picture of T x C points (digits, spectrograms).

    The ensemble. `profile` default scores by the linear members beside the network, full by a memory of normal windows
    too, alone by the network and nothing else (`training.ensemble`).

    The loss. Means over finite targets only. `newest_weight` counts the newest row, the one that is scored, as that
    many rows. cross_entropy compares the logistic of scaled values.
    sparse, contractive : weight of mean |z| and of the encoder's squared Jacobian (0 leaves them out).
    denoise             : sd of the noise put on the inputs, in scaled units; `drop_inputs` blanks that share of them.
    beta, beta_warmup   : weight of the KL term, reached in a straight line over that many epochs.
    adversary           : weight of the terms that play against the critic and the second decoder.

    The descent. `rate` is the learning rate; `warmup_steps` raises it in a straight line; `schedule` lowers it
    afterwards. An epoch is at most `epoch_steps` mini-batches, so that a checkpoint is never far back.
    `clip` bounds the gradient's norm (0: never). Training stops after `patience` epochs without a better held-out
    loss, after `epochs`, or after `max_s` seconds (0: no limit), and the best weights are put back.

    The data. `validation` is the last share of the fit span by time, with a purge gap of one window.
    The machine. device auto takes a GPU where there is one; precision bf16 and compile are for GPUs.
    """

    model: Family = "dense"
    latent: int = 0
    hidden: tuple[int, ...] = ()
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    norm: Literal["none", "batch", "layer"] = "none"
    dropout: float = 0.0
    init: Literal["default", "xavier", "he", "orthogonal"] = "default"
    linear_path: bool = True
    cell: Literal["gru", "lstm"] = "gru"
    plane: bool = False

    profile: Literal["alone", "light", "default", "full"] = "default"

    loss: Literal["mse", "mae", "huber", "cross_entropy"] = "mse"
    newest_weight: float = 1.0
    l1: float = 0.0
    l2: float = 0.0
    sparse: float = 0.0
    contractive: float = 0.0
    denoise: float = 0.0
    drop_inputs: float = 0.0
    beta: float = 1e-3
    beta_warmup: int = 5
    adversary: float = 0.1

    optimiser: Literal["sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop"] = "adam"
    rate: float = 2e-3
    schedule: Literal["constant", "cosine", "step", "exponential", "plateau"] = "cosine"
    warmup_steps: int = 0
    batch: int = 64
    epochs: int = 60
    epoch_steps: int = 2000
    patience: int = 8
    clip: float = 1.0
    max_s: float = 0.0
    seed: int = 0

    validation: float = 0.2

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bf16"] = "float32"
    compile: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (
            ("latent", 0, 4096), ("dropout", 0, 0.95), ("drop_inputs", 0, 0.95), ("rate", 1e-9, 100),
            ("batch", 1, 1 << 20), ("epochs", 1, 1 << 20), ("epoch_steps", 1, 1 << 30), ("patience", 1, 1 << 20),
            ("clip", 0, 1e9),
            ("max_s", 0, 1e9), ("validation", 0.01, 0.9), ("newest_weight", 1, 1e6), ("denoise", 0, 100),
            ("l1", 0, 1e9), ("l2", 0, 1e9), ("sparse", 0, 1e9), ("contractive", 0, 1e9), ("beta", 0, 1e9),
            ("beta_warmup", 0, 1 << 20), ("adversary", 0, 1e9), ("warmup_steps", 0, 1 << 30), ("seed", 0, 1 << 62),
        ):
            if not low <= getattr(self, name) <= high:
                raise BadInput(f"recipe.{name} is {getattr(self, name)}; give {low:.7g} to {high:.7g}")
        if self.hidden and min(self.hidden) < 1:
            raise BadInput(f"recipe.hidden is {list(self.hidden)}; give widths of at least 1, for example [64]")

    @property
    def widths(self) -> tuple[int, ...]:
        """`hidden`, or the family's own widths."""
        return self.hidden or WIDTHS[self.model]

    def latent_size(self, sensors: int) -> int:
        """D for a window of that many scored channels."""
        return self.latent or min(64, max(4, round(1.5 * sensors)))


def parse_recipe(raw: object, changes: dict[str, Any] | None = None) -> Recipe:
    """A recipe from plain dicts (YAML or JSON already read); `changes` win over `raw`, strings are read as YAML would.

    Raises BadInput that names the bad field.
    """
    if raw is not None and not isinstance(raw, dict):
        raise BadInput("recipe: give a map of settings, for example {model: conv, epochs: 40}")
    wishes = {**(raw or {}), **(changes or {})}
    for name in wishes:
        if name not in Recipe.__struct_fields__:
            near = difflib.get_close_matches(str(name), Recipe.__struct_fields__, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(Recipe.__struct_fields__)}"
            raise BadInput(f"recipe: no setting {name!r}; {hint}")
    for name, kind in get_type_hints(Recipe).items():
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        if choices and name in wishes and wishes[name] not in choices:
            raise BadInput(f"recipe.{name} is {wishes[name]!r}; give one of {', '.join(map(str, choices))}")
    try:
        return msgspec.convert(wishes, Recipe, strict=False)
    except msgspec.ValidationError as error:
        raise BadInput(f"recipe: {error}; docs/training.md lists the settings and their values") from error

"""What a training run did, line by line. No torch in here."""

import math

import msgspec


class Epoch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the history. Losses in the recipe's unit; `held_out` is the plain reconstruction loss."""

    number: int
    train: float
    held_out: float
    rate: float
    seconds: float


class History(msgspec.Struct, forbid_unknown_fields=True):
    """Lines so far; `best` is the epoch whose weights count, 0 the start; `stopped` says why the run ended."""

    epochs: list[Epoch] = []
    best: int = 0
    best_loss: float = math.inf
    first_loss: float = math.inf
    windows: int = 0
    stopped: str = ""

    @property
    def windows_per_s(self) -> float:
        """Training windows a second, held-out passes included."""
        return self.windows / max(1e-9, sum(epoch.seconds for epoch in self.epochs))

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
    """Lines so far; `best` is the epoch whose weights count, 0 the start; `stopped` says why the run ended.

    restarts : where the run went on after its loss was no number, and with which settings, a line each.
    """

    epochs: list[Epoch] = []
    best: int = 0
    best_loss: float = math.inf
    first_loss: float = math.inf
    windows: int = 0
    stopped: str = ""
    restarts: list[str] = []

    @property
    def windows_per_s(self) -> float:
        """Training windows a second, held-out passes included."""
        return self.windows / max(1e-9, sum(epoch.seconds for epoch in self.epochs))

    def of_best(self) -> "History":
        """The history as it stood after the best epoch, from which a run that diverged goes on."""
        windows = self.windows * self.best // max(1, len(self.epochs))           # epochs see about as many each
        return msgspec.structs.replace(self, epochs=self.epochs[: self.best], windows=windows, stopped="")

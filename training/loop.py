"""The training loop: any family, any recipe; stops early, puts the best weights back, survives a kill.

Invariant: on CPU the weights after a run depend on the recipe, the windows and the starting weights alone; a run that
was killed and resumed ends with the same weights as one that was not. Random numbers of an epoch come from
(seed, epoch), so a checkpoint needs no generator's state. Law: tests/laws/test_training_laws.py.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.core.windows import fill
from pipeline.errors import BadInput
from training import checkpoint
from training.history import Epoch, History
from training.losses import Batch, reconstruction
from training.models import Autoencoder
from training.recipe import Recipe
from training.windows import Windows

SHUFFLED = 1 << 20   # windows whose order is drawn at once


class TrainingDiverged(BadInput):
    """The loss became NaN or infinite; the message says where, the last good weights are back in the model."""


Progress = Callable[[Epoch, History], None]


def fit(
    model: Autoencoder,
    train: Windows,
    held_out: Windows,
    recipe: Recipe,
    *,
    progress: Progress | None = None,
    state: Path | None = None,
    resume: bool = False,
    max_steps: int | None = None,
    origin: str = "",
) -> History:
    """Train `model` in place and leave the best weights in it, in evaluation mode, on the CPU.

    state     : a file that is replaced atomically after each epoch; with `resume` the run goes on from it.
    max_steps : stop after that many mini-batches in all (the incremental step).
    origin    : what the windows are of, any text; a checkpoint of other ones is refused.
    Raises TrainingDiverged, with the best epoch in `state` if there was one, to go on from with another rate; and
    BadInput when memory runs out or a checkpoint belongs to another recipe.
    """
    with told_memory(recipe):
        device = pick_device(recipe)
        model.to(device)
        runner = Runner(model, train, recipe, device)
        history = History()
        best = copy.deepcopy(model.state_dict())
        try:
            if resume and state is not None and state.exists():
                history, best = checkpoint.load(state, model, runner.optimisers, recipe, origin=origin)
                for line in history.epochs:
                    runner.see(line.held_out)
            else:
                if state is not None:
                    state.unlink(missing_ok=True)                    # of an earlier run: no resume may mistake it
                history.first_loss = history.best_loss = evaluate(model, held_out, recipe, device)
            for number in range(len(history.epochs) + 1, recipe.epochs + 1):
                if history.stopped:
                    break
                limit = recipe.epoch_steps if max_steps is None else min(recipe.epoch_steps, max_steps - runner.steps)
                began = time.perf_counter()
                loss, seen = runner.epoch(number, limit)
                missed = evaluate(model, held_out, recipe, device)
                line = Epoch(number, loss, missed, runner.rate, time.perf_counter() - began)
                history.epochs.append(line)
                history.windows += seen
                if not math.isfinite(missed):
                    raise TrainingDiverged(
                        f"the held-out loss is {missed} after epoch {number}: lower recipe.rate or set recipe.clip")
                if missed < history.best_loss * (1 - 1e-4):
                    history.best, history.best_loss = number, missed
                    best = copy.deepcopy(model.state_dict())
                runner.see(missed)
                history.stopped = _reason_to_stop(history, recipe, runner.steps, max_steps)
                if state is not None:
                    checkpoint.save(state, model, runner.optimisers, best, history, recipe, origin=origin)
                if progress is not None:
                    progress(line, history)
        except TrainingDiverged as error:
            where = ""
            if state is not None and state.exists():
                model.load_state_dict(best)
                # Without the optimisers' state: it led to no number.
                checkpoint.save(state, model, {}, best, history.of_best(), recipe, origin=origin, is_diverged=True)
                where = f" in {state}"
            kept = f"the best weights so far, of epoch {history.best}, are kept{where}"
            raise TrainingDiverged(f"{error}; {kept}") from error
        finally:
            model.load_state_dict(best)
            model.to("cpu").eval()
    return history


@contextmanager
def told_memory(recipe: Recipe) -> Iterator[None]:
    """Memory that runs out in torch, as BadInput that says which setting to lower."""
    advice = f"lower recipe.batch (now {recipe.batch}) or recipe.hidden (now {list(recipe.widths)})"
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise BadInput(f"out of GPU memory: {advice}") from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise BadInput(f"out of memory: {advice}") from error
        raise


def _reason_to_stop(history: History, recipe: Recipe, steps: int, max_steps: int | None) -> str:
    if len(history.epochs) - history.best >= recipe.patience:
        return f"no better held-out loss for {recipe.patience} epochs"
    if recipe.max_s and sum(epoch.seconds for epoch in history.epochs) >= recipe.max_s:
        return f"time limit of {recipe.max_s:g} s"
    if max_steps is not None and steps >= max_steps:
        return f"{max_steps} mini-batches"
    return f"all {recipe.epochs} epochs" if len(history.epochs) >= recipe.epochs else ""


def pick_device(recipe: Recipe) -> torch.device:
    """Where to train. Raises BadInput when the recipe asks for a GPU that is not there."""
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise BadInput("recipe.device is cuda and torch sees no GPU: set device to auto or cpu")
    use = torch.cuda.is_available() and recipe.device != "cpu"
    return torch.device("cuda" if use else "cpu")


def seed_everything(seed: int) -> None:
    """One seed for weights, masks and noise."""
    torch.manual_seed(seed & 0x7FFF_FFFF_FFFF_FFFF)


def make_batch(windows: Windows, which: np.ndarray, recipe: Recipe, device: torch.device) -> Batch:
    """Those windows on the training device, with the loss's weights."""
    raw = windows.raw(which)                                         # (b,T,I)
    target = raw if len(windows.scored) == raw.shape[2] else raw[:, :, windows.scored]
    if not np.isnan(raw).any():
        weight = None
        if recipe.newest_weight != 1.0:
            weight = torch.ones((1, windows.length, 1), device=device)
            weight[:, -1] = recipe.newest_weight
            weight = weight.expand(len(raw), -1, target.shape[2])
        x = torch.from_numpy(raw).to(device, non_blocking=True)
        return Batch(x, x if target is raw else torch.from_numpy(np.ascontiguousarray(target)).to(device), weight)
    counted = np.isfinite(target).astype(np.float32)
    counted[:, -1] *= recipe.newest_weight
    clean = np.nan_to_num(target, nan=0.0)
    return Batch(*(torch.from_numpy(array).to(device) for array in (fill(raw), clean, counted)))


@torch.no_grad()
def evaluate(model: Autoencoder, windows: Windows, recipe: Recipe, device: torch.device, most: int = 20_000) -> float:
    """Mean reconstruction loss (the recipe's kind, no penalty, no noise) over at most that many windows."""
    was_training = model.training
    model.eval()
    total = weight = 0.0
    thin = windows.thinned(most)
    for which in np.array_split(np.arange(len(thin)), max(1, math.ceil(len(thin) / 1024))):
        batch = make_batch(thin, which, recipe, device)
        counted = float(len(which))
        if batch.weight is not None:
            counted = float(batch.weight.sum()) / (windows.length * len(windows.scored))
        if counted:
            total += float(reconstruction(recipe.loss, model(batch.x)[0], batch)) * counted
            weight += counted
    model.train(was_training)
    return total / weight if weight else math.nan


class Runner:
    """Optimisers, schedules and the inner loop of one run."""

    def __init__(self, model: Autoencoder, train: Windows, recipe: Recipe, device: torch.device) -> None:
        self.model, self.train, self.recipe, self.device = model, train, recipe, device
        self.optimisers = {part: make_optimiser(model.weights_of(part), recipe) for part in model.parts}
        self.per_epoch = min(recipe.epoch_steps, max(1, math.ceil(len(train) / recipe.batch)))
        self.steps = 0
        self.rate = recipe.rate
        self.plateau = 1.0
        self.waiting, self.lowest = 0, math.inf
        self.objective: Callable[[str, Batch, int], Tensor] = model.objective
        if recipe.compile and device.type == "cuda":
            self.objective = torch.compile(model.objective)

    def epoch(self, number: int, limit: int) -> tuple[float, int]:
        """One epoch of at most `limit` mini-batches: mean loss of the first part, and windows seen."""
        seed_everything(self.recipe.seed * 1_000_003 + number)
        self.model.train()
        self.steps = (number - 1) * self.per_epoch
        total, seen, done = torch.zeros((), device=self.device), 0, 0
        for which in self._batches(number, limit):
            self._set_rate(number)
            batch = make_batch(self.train, which, self.recipe, self.device)
            loss = self._step(batch, number)
            total += loss
            done, seen, self.steps = done + 1, seen + len(which), self.steps + 1
            if done % 50 == 0 or done == 1:
                self._check(float(total), number, done)
        self._check(float(total), number, done)
        return float(total) / max(1, done), seen

    def _step(self, batch: Batch, number: int) -> Tensor:
        first = None
        for part, optimiser in self.optimisers.items():
            optimiser.zero_grad(set_to_none=True)
            with self._precision():
                loss = self.objective(part, batch, number)
            loss.backward()
            if self.recipe.clip:
                torch.nn.utils.clip_grad_norm_(optimiser.param_groups[0]["params"], self.recipe.clip)
            optimiser.step()
            first = loss.detach() if first is None else first
        assert first is not None
        return first

    def _precision(self) -> AbstractContextManager[object]:
        if self.recipe.precision == "bf16" and self.device.type == "cuda":
            return torch.autocast("cuda", dtype=torch.bfloat16)
        return nullcontext()

    def _batches(self, number: int, limit: int) -> Iterator[np.ndarray]:
        """Shuffled windows of this epoch; a long data set goes on where the last epoch stopped.

        More than SHUFFLED windows are taken in rounds, each spread evenly over all of them, so that the order of no
        more than that many is ever in memory.
        """
        size, count = self.recipe.batch, len(self.train)
        rounds = -(-count // SHUFFLED)
        sizes = [-(-len(range(turn, count, rounds)) // size) for turn in range(rounds)]     # mini-batches of each round
        order, shown = None, -1
        for place in range(min(limit, self.per_epoch)):
            lap, at = divmod((number - 1) * self.per_epoch + place, sum(sizes))
            turn = int(np.searchsorted(np.cumsum(sizes), at, side="right"))
            at -= sum(sizes[:turn])
            if order is None or shown != lap * rounds + turn:
                shown = lap * rounds + turn
                shuffled = np.random.default_rng([self.recipe.seed, shown])
                order = turn + rounds * shuffled.permutation(len(range(turn, count, rounds)))
            which = order[at * size : (at + 1) * size]
            if len(which) > 1 or count == 1:                         # batch norm can't take a batch of one
                yield which

    def _check(self, total: float, number: int, done: int) -> None:
        if not math.isfinite(total):
            raise TrainingDiverged(
                f"the loss is {total} at batch {done} of epoch {number}: lower recipe.rate (now {self.recipe.rate:g}) "
                f"or set recipe.clip (now {self.recipe.clip:g}; 0 is off)")

    def _set_rate(self, number: int) -> None:
        self.rate = self.recipe.rate * self.plateau * schedule(self.recipe, self.steps, self.per_epoch)
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = self.rate

    def see(self, held_out: float) -> None:
        """Schedule `plateau`: a third of the rate after half the patience without a better held-out loss."""
        if self.recipe.schedule != "plateau":
            return
        self.waiting = 0 if held_out < self.lowest else self.waiting + 1
        self.lowest = min(self.lowest, held_out)
        if self.waiting >= max(1, self.recipe.patience // 2):
            self.plateau, self.waiting = self.plateau / 3, 0


def schedule(recipe: Recipe, step: int, per_epoch: int) -> float:
    """Share of the rate at that mini-batch: warm-up in a straight line, then the recipe's curve down to 1 %."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.epochs * per_epoch - recipe.warmup_steps)
    match recipe.schedule:
        case "cosine":
            return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        case "exponential":
            return 0.01 ** min(1.0, done)
        case "step":
            return 0.1 ** int(min(0.999, done) * 3)
        case _:
            return 1.0


def make_optimiser(weights: list[torch.nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser; `l2` is weight decay (decoupled for adamw)."""
    rate, decay = recipe.rate, recipe.l2
    match recipe.optimiser:
        case "sgd":
            return torch.optim.SGD(weights, lr=rate, weight_decay=decay)
        case "momentum":
            return torch.optim.SGD(weights, lr=rate, momentum=0.9, weight_decay=decay)
        case "nesterov":
            return torch.optim.SGD(weights, lr=rate, momentum=0.9, nesterov=True, weight_decay=decay)
        case "adamw":
            return torch.optim.AdamW(weights, lr=rate, weight_decay=decay or 1e-2)
        case "rmsprop":
            return torch.optim.RMSprop(weights, lr=rate, weight_decay=decay)
        case _:
            return torch.optim.Adam(weights, lr=rate, weight_decay=decay)


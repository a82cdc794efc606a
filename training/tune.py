"""`narrows tune`: settings searched by held-out error of the newest row, over blocks of time with a purge gap.

The study lies in a journal file, so a search that was killed goes on where it stopped; one search at a time writes it.
The latent size is not searched: a larger one always rebuilds more, and it is what is paid for in features and in the
stream.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import optuna
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from pipeline.errors import BadInput
from training import data, loop
from training.prepare import FIT, Prepared
from training.recipe import Recipe
from training.train import begin, build
from training.windows import Windows, fold_by_time

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
START = "start"      # mark of the trial of the recipe's own settings
WIDTHS = {"32": (32,), "64": (64,), "128": (128,), "256": (256,), "128-64": (128, 64)}
CONV_WIDTHS = {"16-8": (16, 8), "32-16": (32, 16), "64-32": (64, 32)}


@dataclass(frozen=True)
class Tuned:
    """The best settings so far.

    first  : the error of the recipe that the search began with, NaN where that trial has not ended.
    trials : that ended, `pruned` of them given up early; killed ones don't count.
    """

    recipe: Recipe
    error: float
    first: float
    trials: int
    pruned: int


def tune(
    prepared: Prepared, recipe: Recipe, journal: Path, *, trials: int = 30, timeout_s: float | None = None,
    folds: int = 3, progress: Callable[[int, float, float], None] | None = None,
) -> Tuned:
    """Search from `recipe` on; its own settings are the first trial.

    journal : file of the study; it goes on where it stands.   progress : called with trial, its error, the best one.
    Raises BadInput when the journal is of another search, or too few rows are left for the folds.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    every = data.windows_of(prepared, FIT)
    order = prepared.ts_ms[every.ends]
    parts = fold_by_time(every, order, folds, purge=every.length - 1)
    if len(parts) < 2:
        raise BadInput(f"{len(every)} windows are too few for {folds} folds: give more rows, or --folds 2")
    study = optuna.create_study(
        study_name=f"{recipe.model}-{prepared.contract.hash[:12]}-{folds}", storage=_storage(journal),
        load_if_exists=True, pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1))
    # Each start draws other settings than the ones before it, and a trial that was killed is no trial.
    study.sampler = optuna.samplers.TPESampler(seed=recipe.seed + len(study.trials), n_startup_trials=8)
    for killed in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(killed.number, state=TrialState.FAIL)
    if not any(START in trial.user_attrs for trial in study.get_trials(states=(*ENDED, TrialState.WAITING))):
        study.enqueue_trial(_as_trial(recipe), user_attrs={START: True})

    def objective(trial: optuna.Trial) -> float:
        suggested = suggest(trial, recipe)
        errors: list[float] = []
        for number, (learn, held_out) in enumerate(parts):
            try:
                errors.append(_error(prepared, suggested, learn, held_out))
            except loop.TrainingDiverged as error:
                raise optuna.TrialPruned(str(error)) from error
            trial.report(float(np.mean(errors)), number)
            if trial.should_prune():
                raise optuna.TrialPruned
        return float(np.mean(errors))

    def tell(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if progress is not None and trial.value is not None:
            progress(trial.number, trial.value, study.best_value)

    done = len(study.get_trials(states=ENDED))
    study.optimize(objective, n_trials=max(0, trials - done), timeout=timeout_s, callbacks=[tell])
    ended = study.get_trials(states=ENDED)
    pruned = sum(trial.state == TrialState.PRUNED for trial in ended)
    if pruned == len(ended):
        raise BadInput("no trial ended: give more --timeout, or fewer rows")
    first = [trial.value for trial in ended if START in trial.user_attrs and trial.value is not None]
    return Tuned(suggest(optuna.trial.FixedTrial(study.best_params), recipe), study.best_value,
                 first[0] if first else float("nan"), len(ended), pruned)


def suggest(trial: optuna.Trial | optuna.trial.FixedTrial, recipe: Recipe) -> Recipe:
    """The trial's recipe: what is searched, on top of what was asked for."""
    widths = CONV_WIDTHS if recipe.model == "conv" else WIDTHS
    changes: dict[str, Any] = {
        "rate": trial.suggest_float("rate", 1e-4, 1e-2, log=True),
        "batch": trial.suggest_categorical("batch", [32, 64, 128]),
        "hidden": widths[trial.suggest_categorical("hidden", list(widths))],
        "dropout": trial.suggest_float("dropout", 0.0, 0.3), "denoise": trial.suggest_float("denoise", 0.0, 0.5),
        "l2": trial.suggest_float("l2", 1e-8, 1e-3, log=True),
        "activation": trial.suggest_categorical("activation", ["relu", "gelu", "tanh"]),
    }
    if recipe.model == "dense":   # else many a trial ends where it begins, at the principal components
        changes["linear_path"] = trial.suggest_categorical("linear_path", [True, False])
    if recipe.model == "recurrent":
        changes["cell"] = trial.suggest_categorical("cell", ["gru", "lstm"])
    if recipe.model == "vae":
        changes["beta"] = trial.suggest_float("beta", 1e-4, 1e-1, log=True)
    if recipe.model == "adversarial":
        changes["adversary"] = trial.suggest_float("adversary", 0.01, 0.5, log=True)
    return msgspec.structs.replace(recipe, **changes)


def _as_trial(recipe: Recipe) -> dict[str, Any]:
    widths = CONV_WIDTHS if recipe.model == "conv" else WIDTHS
    width = next((name for name, value in widths.items() if value == recipe.widths), next(iter(widths)))
    return {"rate": recipe.rate, "batch": recipe.batch if recipe.batch in (32, 64, 128) else 64, "hidden": width,
            "dropout": recipe.dropout, "denoise": recipe.denoise, "l2": max(recipe.l2, 1e-8),
            "activation": recipe.activation if recipe.activation in ("relu", "gelu", "tanh") else "relu",
            "linear_path": recipe.linear_path, "cell": recipe.cell, "beta": recipe.beta, "adversary": recipe.adversary}


def _error(prepared: Prepared, recipe: Recipe, learn: Windows, held_out: Windows) -> float:
    """Held-out mean square error of the newest row; the end of `learn` chooses the epoch, not the held-out block."""
    cut = len(learn) - max(1, round(recipe.validation * len(learn)))
    stop_by = learn.part(slice(cut, None))
    learn = learn.part(slice(0, max(1, cut - learn.length)))
    model = build(prepared.contract, recipe)
    begin(model, learn, recipe)
    loop.fit(model, learn, stop_by, recipe)
    judged = held_out.thinned(2000)
    with torch.no_grad():
        said = model(torch.from_numpy(judged.inputs(slice(None))))[0][:, -1].numpy()
    missed = judged.raw(slice(None))[:, -1, judged.scored] - said
    return float(np.nanmean(missed.astype(np.float64) ** 2))


def _storage(journal: Path) -> JournalStorage:
    journal.parent.mkdir(parents=True, exist_ok=True)
    try:
        return JournalStorage(JournalFileBackend(str(journal)))
    except (ValueError, KeyError, OSError) as error:
        raise BadInput(f"{journal} is no journal of a search ({error}): give another --journal") from error



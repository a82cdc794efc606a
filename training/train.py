"""One training run from table to bundle: prepare, fit, export, prove parity, calibrate, judge beside baselines, write.

`train` begins anew, or goes on from a champion's weights by the recipe of `going_on`. It returns what was made, for
reports and notebooks.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors.torch import load as load_weights
from safetensors.torch import save as save_weights

from pipeline.core.contract import Contract
from pipeline.errors import BadBundle
from pipeline.formats.files import Table
from pipeline.registry.bundle import Bundle
from training import data, export, loop
from training.calibrate import Calibrated, calibrate
from training.compare import compare
from training.ensemble import assemble
from training.history import History
from training.make_baseline import write_calibrated
from training.models import BY_NAME, Autoencoder, Shape, initialise
from training.prepare import FIT, Prepared, prepare
from training.recipe import Recipe, parse_recipe
from training.windows import Windows

START_WINDOWS = 4096      # windows that a data-dependent start looks at


@dataclass(frozen=True)
class Trained:
    """What a run made. quality : figures on held-out rows, by model name; parity : worst difference by batch size."""

    bundle: Bundle
    model: Autoencoder
    prepared: Prepared
    recipe: Recipe
    history: History
    quality: dict[str, dict[str, float]]
    parity: dict[int, float]


def train(
    table: Table, contract: Contract, recipe: Recipe, out: Path, *, masked: np.ndarray | None = None,
    source: Mapping[str, Any] | None = None, progress: loop.Progress | None = None, state: Path | None = None,
    resume: bool = False, parent: Bundle | None = None, is_quantised: bool = False,
    pardoned: np.ndarray | None = None, **calibration: Any,
) -> Trained:
    """Train one autoencoder and write its bundle to `out`.

    masked : (n,) bool over the table's rows that are neither learned from nor judged.
    pardoned : (n,) bool, rows of alerts that people called false (see `prepare`).
    source : what the manifest says about where the rows come from (files, or topic offsets).
    state  : checkpoint file for `resume`.   parent : the bundle whose weights are the start.
    is_quantised : 8-bit weights where detection holds.
    calibration : passed on to `training.calibrate.calibrate` (nominal, alerts_per_device_week, refuse).
    Raises BadInput and BadBundle, each with what to do.
    """
    data.check_order(table)
    values = data.in_contract_order(table, contract)
    prepared = prepare(contract, table.devices, table.device, table.ts_ms, values, mask=masked, pardoned=pardoned)
    windows = data.learning_windows(prepared, recipe.validation)
    return train_on_windows(prepared, windows, recipe, out, source=source, progress=progress, state=state,
                            resume=resume, parent=parent, is_quantised=is_quantised, **calibration)


def train_on_windows(
    prepared: Prepared, windows: tuple[Windows, Windows], recipe: Recipe, out: Path, *,
    source: Mapping[str, Any] | None = None, progress: loop.Progress | None = None, state: Path | None = None,
    resume: bool = False, parent: Bundle | None = None, is_quantised: bool = False, **calibration: Any,
) -> Trained:
    """`train` from rows that are ready and windows that may lie on disk (`training.spool`).

    prepared : what constants, comparison and report come from.   windows : those that move weights, those that choose
    the epoch.
    """
    learn, held_out = windows
    model = build(prepared.contract, recipe)
    if parent is None:
        begin(model, learn, recipe)
    else:
        put_weights(model, parent)
    first_ms = (source or {}).get("first_ts_ms", int(prepared.ts_ms.min()))       # of all rows, if these are a sample
    origin = f"{prepared.contract.hash} {first_ms}"
    history = loop.fit(
        model, learn, held_out, recipe, progress=progress, state=state, resume=resume, origin=origin)
    return finish(model, prepared, recipe, history, out, source=source, parent=parent, is_quantised=is_quantised,
                  **calibration)


def going_on(champion: Bundle, recipe: Recipe | None = None) -> Recipe:
    """The recipe of a challenger that goes on from the champion's weights: its own at a third of the rate, and shorter.

    recipe : changes nothing but the descent.
    """
    own = parse_recipe(champion.manifest.recipe)
    wanted = recipe or own
    return msgspec.structs.replace(
        own, rate=wanted.rate / 3, epochs=max(4, wanted.epochs // 3), patience=max(2, wanted.patience // 2),
        batch=wanted.batch, max_s=wanted.max_s, device=wanted.device, warmup_steps=50)


def build(contract: Contract, recipe: Recipe) -> Autoencoder:
    """The recipe's model for that contract, with starting weights from the recipe's seed.

    Raises BadInput where it doesn't fit into memory.
    """
    sensors = len(contract.sensors)
    shape = Shape(contract.window, len(contract.inputs), tuple(int(i) for i in contract.sensors_in_inputs),
                  recipe.latent_size(sensors))
    loop.seed_everything(recipe.seed)
    with loop.told_memory(recipe):
        model = BY_NAME[recipe.model](shape, recipe)
        initialise(model, recipe.init)
    return model


def begin(model: Autoencoder, learn: Windows, recipe: Recipe) -> None:
    """The family's data-dependent start (dense: at the principal components), once, before a training from scratch."""
    some = learn.thinned(START_WINDOWS)
    with loop.told_memory(recipe):
        batch = loop.make_batch(some, np.arange(len(some)), recipe, torch.device("cpu"))
        model.begin(batch.x, batch.x[:, :, list(model.shape.scored)])


def put_weights(model: Autoencoder, bundle: Bundle) -> None:
    """A bundle's weights into a model of the same recipe. Raises BadBundle where they don't fit."""
    if bundle.weights is None:
        raise BadBundle(f"bundle {bundle.short} ({bundle.manifest.family}) holds no weights to go on from: train anew")
    try:
        model.load_state_dict(load_weights(bundle.weights))
    except RuntimeError as error:
        raise BadBundle(f"the weights of bundle {bundle.short} don't fit this contract: train anew") from error


def restore(bundle: Bundle) -> Autoencoder:
    """The torch model of a bundle, in evaluation mode. Raises BadBundle for a baseline."""
    model = build(bundle.contract, parse_recipe(bundle.manifest.recipe))
    put_weights(model, bundle)
    return model.eval()


def finish(
    model: Autoencoder, prepared: Prepared, recipe: Recipe, history: History, out: Path, *,
    source: Mapping[str, Any] | None = None, parent: Bundle | None = None, is_quantised: bool = False,
    **calibration: Any,
) -> Trained:
    """Export, parity, calibration, comparison, bundle: what follows every training."""
    content = export.to_onnx(model)
    fitted = data.windows_of(prepared, FIT).thinned(256)
    worst = export.parity(model, content, fitted.inputs(slice(None)))
    quality = compare({recipe.model: content}, prepared)
    facts: dict[str, Any] = {"parity": max(worst.values())}
    body = content
    content, members, calibrated = _calibrated(body, prepared, recipe, **calibration)
    if is_quantised:
        from training.quantise import judge, quantise

        small = _calibrated(quantise(body, fitted.inputs(slice(None))), prepared, recipe, **calibration)
        verdict = judge((content, calibrated.scorer), (small[0], small[2].scorer), prepared)
        facts["int8"] = verdict.facts() | {"bytes": len(small[0]), "bytes_float": len(content)}
        if verdict.is_accepted:
            content, members, calibrated = small
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    bundle = write_calibrated(
        prepared, content, calibrated, out, family=recipe.model, members=members, seed=recipe.seed,
        data=dict(source or {}), quality=quality, weights=save_weights(weights), recipe=msgspec.to_builtins(recipe),
        parent="" if parent is None else parent.digest, created_ms=int(time.time() * 1000),
        training={"epochs": len(history.epochs), "best": history.best, "first_loss": history.first_loss,
                  "best_loss": history.best_loss, "stopped": history.stopped,
                  **({"restarts": "; ".join(history.restarts)} if history.restarts else {}), **facts},
        )
    return Trained(bundle, model, prepared, recipe, history, quality, worst)


def _calibrated(
    body: bytes, prepared: Prepared, recipe: Recipe, **calibration: Any
) -> tuple[bytes, tuple[str, ...], Calibrated]:
    """The body with the recipe's other members, and its calibration."""
    members: tuple[str, ...] = (recipe.model,)
    if recipe.profile != "alone":
        body, members = assemble(prepared, body, recipe.model, recipe.profile)
    return body, members, calibrate(body, prepared, members=members, **calibration)

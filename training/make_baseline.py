"""A whole bundle with a baseline model, made in a second without torch: what a stream starts on."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.codec.train import train_codec
from pipeline.core.windows import fill
from pipeline.registry.bundle import Bundle, write_bundle
from pipeline.scoring.gate import make_golden
from pipeline.scoring.session import Session
from training.baselines import FIT_WINDOWS, fit_baseline
from training.calibrate import Calibrated, calibrate
from training.ensemble import Profile, assemble
from training.prepare import FIT, Prepared

LATENT_STEP = 0.2      # bound of a coded latent, as a share of its deviation
MOST_LATENTS = 4000    # windows of a device that the latents' codec is learned from, the newest


def make_baseline_bundle(
    prepared: Prepared, out: Path, kind: str = "linear", seed: int = 0, profile: Profile = "default", **calibration: Any
) -> Bundle:
    """Fits, calibrates and writes a baseline.

    prepared : from `training.prepare.prepare`.   out : the bundle's folder.   kind : raw | pca | var, or linear: the
    ensemble of `training.ensemble` without an autoencoder, of that profile.
    calibration : passed on to `calibrate` (nominal, alerts_per_device_week, refuse, ...).
    """
    model, members = fit_without_torch(prepared, kind, profile)
    calibrated = calibrate(model, prepared, members=members, **calibration)
    return write_calibrated(prepared, model, calibrated, out, family=kind, members=members, seed=seed)


def fit_without_torch(prepared: Prepared, kind: str, profile: Profile = "default") -> tuple[bytes, tuple[str, ...]]:
    """The ONNX file and the members' names of raw, pca, var or linear."""
    if kind == "linear":
        return assemble(prepared, profile=profile)
    return fit_baseline(kind, prepared.windows(FIT, FIT_WINDOWS), prepared.contract), (kind,)


def write_calibrated(
    prepared: Prepared, model: bytes, calibrated: Calibrated, out: Path, *, family: str, members: tuple[str, ...],
    seed: int = 0, **more: Any,
) -> Bundle:
    """Writes a bundle from a calibrated model. more : further fields of the manifest, `codec`, `extras`."""
    contract = prepared.contract
    data = {
        "rows": len(prepared.ts_ms), "devices": len(prepared.devices), "first_ts_ms": int(prepared.ts_ms.min()),
        "last_ts_ms": int(prepared.ts_ms.max()), "drifted": prepared.drifted,
        "masked_rows": int((prepared.part < 0).sum()),
        "pardoned_rows": 0 if prepared.pardoned is None else int(prepared.pardoned.sum()),
    } | more.pop("data", {})
    more.setdefault("codec", codec_of(prepared))
    more.setdefault("latent_codec", latent_codec_of(prepared, session := Session(model)))
    return write_bundle(
        out, contract=contract, scaling=prepared.scaling, scorer=calibrated.scorer, model=model,
        golden=make_golden(session, calibrated.scorer, contract, seed), family=family, members=members,
        seed=seed, data=data, calibration=calibrated.facts, versions=versions(), **more,
    )


def codec_of(prepared: Prepared) -> bytes:
    """The codec model of a stream, learned from the same rows: what bounded blocks are written with."""
    contract = prepared.contract
    devices = [prepared.values[prepared.device == place] for place in range(len(prepared.devices))]
    rows = max(1, min(contract.span_ms // contract.step_ms, contract.max_rows))
    return train_codec(devices, contract.bounds, step_ms=contract.step_ms, block_rows=rows).to_bytes()


def latent_codec_of(prepared: Prepared, session: Session) -> bytes | None:
    """The codec model of the model's latents, from windows that follow each other; None where there are too few.

    The step is LATENT_STEP of each latent's deviation: coarser than the latent itself is exact, far finer than the
    error that rebuilding from it makes.
    """
    contract, starts = prepared.contract, np.flatnonzero(np.append(True, np.diff(prepared.device) != 0))
    inputs, window = prepared.scaled[:, contract.inputs], contract.window
    segments = []
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(inputs)], strict=True):
        ends = np.arange(start + window, stop + 1, window)[-MOST_LATENTS:]
        ends = ends[prepared.run[ends - 1] >= window]
        if len(ends) >= 2:
            segments.append(session.run(fill(np.stack([inputs[end - window : end] for end in ends]))).latent)
    if not segments or session.latent == 0:
        return None
    spread = np.concatenate(segments).astype(np.float64).std(axis=0)
    bounds = LATENT_STEP * np.where(spread > 0, spread, 1.0)
    rows = max(1, min(contract.span_ms // contract.step_ms, contract.max_rows) // window)
    return train_codec(segments, bounds, block_rows=rows).to_bytes()


def versions() -> dict[str, str]:
    """What made the bundle: this distribution, and the libraries that its numbers rest on."""
    names = ("narrows", "numpy", "onnx", "onnxruntime")
    return {"python": platform.python_version()} | {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return version(name)
    except ImportError:   # PackageNotFoundError: onnxruntime-gpu stands in for onnxruntime
        return version("onnxruntime-gpu") if name == "onnxruntime" else "unknown"

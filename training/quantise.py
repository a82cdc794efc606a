"""8-bit weights and activations, static and calibrated on real windows; kept only where detection holds.

Detection is measured with faults of known size planted into the held-out rows (training.duel), since no label is at
hand when one trains: the share of faults that score over the threshold, each model with its own calibration.
"""

import contextlib
import io
import logging
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from pipeline.core.score import Scorer
from pipeline.scoring.session import Session
from training.calibrate import filter_rows, residual_rows
from training.duel import plant
from training.prepare import CALIBRATION, Prepared

ALLOWED_LOSS = 0.02   # of the share of planted faults that are seen


class _Batches(CalibrationDataReader):
    """Windows in batches, for the ranges of activations."""

    def __init__(self, windows: np.ndarray) -> None:
        self._batches = iter(np.array_split(windows, max(1, len(windows) // 64)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"x": np.ascontiguousarray(batch, dtype=np.float32)}


@dataclass(frozen=True)
class Verdict:
    """Whether the 8-bit model may stream. detected : share of planted faults seen, by it and by the float model."""

    is_accepted: bool
    detected: float
    detected_float: float

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {"accepted": self.is_accepted, "detected": self.detected, "detected_float": self.detected_float}


def quantise(content: bytes, windows: np.ndarray) -> bytes:
    """The same graph with 8-bit weights and activations. windows : (n, T, I) float32, real ones, filled.

    Weights use 7 of the 8 bits: processors without VNNI add pairs of products in 16 bits and saturate, and a bundle
    must say the same wherever it streams.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        logging.getLogger().setLevel(max(logging.getLogger().level, logging.ERROR))
        given, ready, made = (Path(folder) / name for name in ("given.onnx", "ready.onnx", "made.onnx"))
        given.write_bytes(content)
        quant_pre_process(str(given), str(ready), skip_symbolic_shape=True)
        quantize_static(str(ready), str(made), _Batches(windows), quant_format=QuantFormat.QDQ, per_channel=True,
                        weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8, reduce_range=True)
        whole = onnx.load(str(made))
    for value, was in zip(whole.graph.output, onnx.load_from_string(content).graph.output, strict=True):
        value.CopyFrom(was)                                          # the free batch and the sizes as they were
    return bytes(whole.SerializeToString())


def judge(float_model: tuple[bytes, Scorer], small_model: tuple[bytes, Scorer], prepared: Prepared) -> Verdict:
    """Compare two calibrated models on planted faults."""
    detected_float, detected = (faults_seen(*model, prepared) for model in (float_model, small_model))
    return Verdict(detected >= detected_float - ALLOWED_LOSS, detected, detected_float)


def faults_seen(content: bytes, scorer: Scorer, prepared: Prepared) -> float:
    """Share of the faults planted into the calibration rows that score over the threshold."""
    judged = prepared.part == CALIBRATION
    values, fault = plant(prepared.values, prepared.device, judged, prepared.contract, prepared.scaling.scale[-1])
    if not (fault >= 0).any():
        return 0.0
    ill = replace(prepared, values=values, scaled=prepared.scaling.apply(values, prepared.index))
    residuals, age = residual_rows(Session(content), ill)
    over = scorer.score(filter_rows(scorer, residuals, age), ill.index) > scorer.threshold
    seen = np.zeros(int(fault.max()) + 1, dtype=bool)
    np.logical_or.at(seen, fault[fault >= 0], over[fault >= 0])
    return float(seen.mean())

"""One ONNX model, run on padded chunks of one fixed size, so that a window's outputs never depend on its batch.

The graph: input `x` (b, T, I) float32, scaled and filled; outputs `newest` (b, M, S), each member's rebuilt newest row
of the scored channels; `latent` (b, D); `rebuilt` (b, T, S), the first member's whole window.
Law: tests/laws/test_session_laws.py; `narrows doctor` runs `differing_positions` on the machine it stands on.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from pipeline.errors import BadBundle, BadInput, Unreachable

CHUNK = 128
OUTPUTS = ("newest", "latent", "rebuilt")
PROVIDERS = {"cpu": ["CPUExecutionProvider"], "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"]}


@dataclass(frozen=True, slots=True)
class Passed:
    """What one pass gives. newest : (n, M, S) float32, scaled units.   latent : (n, D) float32."""

    newest: np.ndarray
    latent: np.ndarray


class Session:
    """ONNX Runtime on one model: one thread, no spinning.

    model : the file's bytes or its path.   provider : `cpu` or `cuda`.
    Raises BadBundle when the file is no model of ours, Unreachable when the provider was asked for and can't run.
    """

    def __init__(self, model: bytes | Path, provider: str = "cpu") -> None:
        if provider not in PROVIDERS:
            raise BadInput(f"provider {provider!r}: give one of {', '.join(PROVIDERS)}")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.log_severity_level = 3
        source = model if isinstance(model, bytes) else str(model)
        try:
            self._session = ort.InferenceSession(source, options, providers=PROVIDERS[provider])
        except Exception as error:   # ONNX Runtime's own exceptions share no base class but Exception
            raise BadBundle(f"model.onnx can't be loaded ({error}); make or fetch the bundle again") from error
        self.provider: str = self._session.get_providers()[0]
        if provider == "cuda" and self.provider != "CUDAExecutionProvider":
            raise Unreachable(
                "provider cuda was asked for, but ONNX Runtime fell back to the CPU: install narrows[gpu] and a driver "
                "that fits, or set the provider to cpu"
            )
        self._check_shapes()
        self._run_options = ort.RunOptions()
        self._run_options.only_execute_path_to_fetches = True
        self.runs = 0

    def _check_shapes(self) -> None:
        inputs = self._session.get_inputs()
        names = {output.name for output in self._session.get_outputs()}
        if [one.name for one in inputs] != ["x"] or not names.issuperset(OUTPUTS):
            raise BadBundle(f"model.onnx needs one input `x` and outputs {', '.join(OUTPUTS)}; it has {sorted(names)}")
        batch, window, channels = inputs[0].shape
        if isinstance(batch, int):
            raise BadBundle(f"model.onnx was exported with a fixed batch of {batch}; export it with a free first axis")
        self.window, self.inputs = int(window), int(channels)
        shapes = {output.name: output.shape for output in self._session.get_outputs()}
        self.members, self.latent = int(shapes["newest"][1]), int(shapes["latent"][1])   # M, D

    def run(self, x: np.ndarray) -> Passed:
        """One pass over windows.

        x : (n, T, I) float32, scaled and filled (see `windows.fill`).
        """
        newest, latent = self._fetch(x, ["newest", "latent"])
        return Passed(newest, latent)

    def rebuild(self, x: np.ndarray) -> np.ndarray:
        """The first member's whole window, for hop > 1 and for pictures. (n, T, S) float32."""
        return self._fetch(x, ["rebuilt"])[0]

    def rebuild_and_gist(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first member's whole windows and their latents in one pass, for hop > 1. (n, T, S), (n, D) float32."""
        rebuilt, latent = self._fetch(x, ["rebuilt", "latent"])
        return rebuilt, latent

    def _fetch(self, x: np.ndarray, names: list[str]) -> list[np.ndarray]:
        if x.ndim != 3 or x.shape[1:] != (self.window, self.inputs):
            raise BadInput(f"windows are {x.shape}; this model takes (n, {self.window}, {self.inputs})")
        parts: list[list[np.ndarray]] = []
        for start in range(0, max(len(x), 1), CHUNK):
            chunk = np.ascontiguousarray(x[start : start + CHUNK], dtype=np.float32)
            count = len(chunk)
            if count < CHUNK:
                chunk = np.concatenate([chunk, np.zeros((CHUNK - count, *x.shape[1:]), dtype=np.float32)])
            outputs = self._session.run(names, {"x": chunk}, self._run_options)
            self.runs += 1
            parts.append([output[:count] for output in outputs])
        if len(parts) == 1:
            return parts[0]
        return [np.concatenate(columns) for columns in zip(*parts, strict=True)]


def differing_positions(session: Session, window: np.ndarray, others: np.ndarray) -> list[int]:
    """Positions of a chunk at which this window gets other bits than at position 0; empty is good.

    window : (T, I).   others : (128, T, I), what stands around it.
    """
    first: np.ndarray | None = None
    differing = []
    for place in range(CHUNK):
        moved = others.copy()
        moved[place] = window
        newest = session.run(moved).newest[place]
        if first is None:
            first = newest
        elif not np.array_equal(newest, first):
            differing.append(place)
    return differing

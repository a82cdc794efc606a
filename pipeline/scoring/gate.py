"""The load gate: a bundle scores only after its weights were found finite and its golden outputs came back.

A flipped bit or a NaN in a weight loads silently, and a broken file can take the whole process down; so the first load
of a digest may happen in a child process (`in_child=True`), which a crash can't leave.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from pipeline.core.contract import Contract
from pipeline.core.score import Scorer
from pipeline.errors import BadBundle
from pipeline.registry.bundle import Bundle, Golden, load_bundle
from pipeline.scoring.session import Session

TOLERANCE = 1e-3   # scaled units; other CPUs differ by 1e-6, a GPU that rounds to TF32 by some 1e-4
CHILD_LIMIT_S = 120


def open_session(bundle: Bundle, provider: str = "cpu", in_child: bool = False) -> Session:
    """A session that has passed the gate.

    in_child : try it in a child process first; for a digest that this worker has not loaded yet.
    Raises BadBundle.
    """
    if in_child and bundle.folder is not None:
        _try_in_child(bundle.folder, provider)
    check_weights(bundle.model, bundle.short)
    session = Session(bundle.model, provider)
    check_golden(bundle, session)
    return session


def make_golden(session: Session, scorer: Scorer, contract: Contract, seed: int = 0) -> Golden:
    """Golden inputs and outputs for a new bundle: a few random windows and residual rows."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (5, contract.window, len(contract.inputs))).astype(np.float32)
    shape = (5, scorer.length, scorer.members * scorer.channels)
    residuals = np.clip(rng.normal(0, 2, shape), -scorer.clip, scorer.clip).astype(np.float32)
    passed = session.run(x)
    fleet = np.full(len(residuals), scorer.groups - 1)
    return Golden(x, passed.newest, passed.latent, residuals, scorer.score(scorer.filter(residuals), fleet))


def check_weights(model: bytes, name: str) -> None:
    """Raises BadBundle when a weight is not finite or lies outside of the file."""
    try:
        graph = onnx.load_model_from_string(model).graph
    except Exception as error:   # protobuf's own errors, which differ between its backends
        raise BadBundle(f"bundle {name}: model.onnx is no ONNX file ({error})") from error
    weights = list(graph.initializer)
    weights += [a.t for node in graph.node if node.op_type == "Constant" for a in node.attribute if a.name == "value"]
    for weight in weights:
        if weight.data_location == onnx.TensorProto.EXTERNAL:
            raise BadBundle(f"bundle {name}: weight {weight.name!r} lies outside of model.onnx; export it inside")
        array = numpy_helper.to_array(weight)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise BadBundle(f"bundle {name}: weight {weight.name!r} is not finite; train again")


def check_golden(bundle: Bundle, session: Session) -> None:
    """Raises BadBundle when the model or the scorer does not give its golden outputs."""
    golden, contract = bundle.golden, bundle.contract
    shape = (contract.window, len(contract.inputs))
    if (session.window, session.inputs) != shape:
        raise BadBundle(f"bundle {bundle.short}: model.onnx takes windows of {(session.window, session.inputs)}, the "
                        f"contract has {shape}")
    passed = session.run(golden.x)
    rebuilt = session.rebuild(golden.x)
    members = (bundle.scorer.members, len(contract.sensors))
    if passed.newest.shape[1:] != members or rebuilt.shape[1:] != (contract.window, members[1]):
        raise BadBundle(f"bundle {bundle.short}: model.onnx gives (members, channels) {passed.newest.shape[1:]}, the "
                        f"scorer and contract have {members}")
    score = bundle.scorer.score(
        bundle.scorer.filter(golden.residuals), np.full(len(golden.residuals), bundle.scorer.groups - 1)
    )
    for name, got, expected in (
        ("newest", passed.newest, golden.newest), ("latent", passed.latent, golden.latent),
        ("score", score, golden.score),
    ):
        if got.shape != expected.shape or not np.allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE):
            raise BadBundle(f"bundle {bundle.short}: `{name}` of the golden input does not come back on this machine "
                            f"({session.provider}); verify the bundle, or train again")


def _try_in_child(folder: Path, provider: str) -> None:
    command = [sys.executable, "-m", "pipeline.scoring.gate", str(folder), provider]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_LIMIT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise BadBundle(f"{folder}: the first load took over {CHILD_LIMIT_S} s in a child process") from error
    if child.returncode:
        told = child.stderr.strip().splitlines()[-1:] or [f"exit {child.returncode}"]
        raise BadBundle(f"{folder}: the first load, in a child process, failed: {told[0]}")


def main() -> int:
    """`python -m pipeline.scoring.gate FOLDER PROVIDER`: exit 0 when the bundle passes, else 1 and one line."""
    try:
        open_session(load_bundle(Path(sys.argv[1])), sys.argv[2])
    except BadBundle as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Several models in one ONNX graph: one pass, one row of `newest` a member.

    body   : gives `latent` and `rebuilt`, the expected value and the change points; an autoencoder, or the VAR
    var    : linear vector autoregression   raw : the scaled value itself
    swing  : |residual| of the VAR: restlessness, where signs cancel out in an average
    memory : distance of the newest rows to the nearest ones kept from training

The score is the mean of log1p(distance / threshold) over them (`pipeline.core.score`): diverse members, each with its
own covariance and threshold, are right more often than any of them.
"""

from typing import Literal, get_args

import numpy as np
import onnx
from onnx import TensorProto, compose, helper
from onnx.utils import Extractor

from pipeline.core.contract import Contract
from pipeline.errors import BadInput
from training.baselines import FIT_WINDOWS, fit_baseline
from training.graphs import Graph
from training.prepare import FIT, Prepared

Profile = Literal["light", "default", "full"]
PROFILES: tuple[Profile, ...] = get_args(Profile)

MEMORY_WINDOWS = {"default": 2048, "full": 4096}   # that a profile keeps
MEMORY_CHANNELS = 4          # scored channels up to which the default keeps any: with more, all windows lie far apart
CANDIDATES = 8192            # windows among which those are chosen
MEMORY_LENGTHS = (40, 100)   # rows compared; at most the contract's window


def assemble(prepared: Prepared, body: bytes | None = None, family: str = "var",
             profile: Profile = "default") -> tuple[bytes, tuple[str, ...]]:
    """The ensemble's ONNX file and its members' names.

    body    : an autoencoder's ONNX file; None starts from the VAR.   family : its name.
    profile : light holds the linear members beside the body; default adds a memory where few channels are scored, full
              adds a larger one always.
    With hop > 1 the score compares whole windows, which one member alone rebuilds: the body is returned as it is.
    """
    contract = prepared.contract
    windows = prepared.windows(FIT, FIT_WINDOWS)
    linear = fit_baseline("var", windows, contract)
    if contract.hop > 1:
        return (linear, ("var",)) if body is None else (body, (family,))
    members = [("var", linear), ("raw", fit_baseline("raw", windows, contract))]
    if body is not None:
        members.insert(0, (family, body))
    if profile == "full" or (profile == "default" and len(contract.sensors) <= MEMORY_CHANNELS):
        kept = memory_windows(prepared, MEMORY_WINDOWS[profile])
        members += [(f"memory{length}", fit_memory(kept, contract, length)) for length in memory_lengths(contract)]
    return merge(members, contract, swing="var"), (*(name for name, _ in members), "swing")


def merge(members: list[tuple[str, bytes]], contract: Contract, swing: str | None = None) -> bytes:
    """One graph out of several over the same `x`; `latent` and `rebuilt` are the first one's.

    members : (name, ONNX file), each with one row of `newest`.   swing : member whose |residual| is a member too, last.
    """
    models = [onnx.load_model_from_string(content) for _, content in members]
    opset = max(one.version for model in models for one in model.opset_import if one.domain == "")
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    for (name, _), model in zip(members, models, strict=True):
        graph = compose.add_prefix(model, f"{name}.", rename_inputs=False).graph
        nodes += graph.node
        weights += graph.initializer
    newest = [f"{name}.newest" for name, _ in members]
    if swing is not None:
        newest.append(_add_swing(nodes, weights, contract, f"{swing}.newest"))
    nodes.append(helper.make_node("Concat", newest, ["newest"], axis=1))
    first = members[0][0]
    nodes += [helper.make_node("Identity", [f"{first}.{name}"], [name]) for name in ("latent", "rebuilt")]
    latent = next(out for out in models[0].graph.output if out.name == "latent").type.tensor_type.shape.dim[1].dim_value
    shapes = {
        "newest": [len(newest), len(contract.sensors)], "latent": [latent],
        "rebuilt": [contract.window, len(contract.sensors)],
    }
    graph = helper.make_graph(
        nodes, "narrows",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", contract.window, len(contract.inputs)])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", *shape]) for name, shape in shapes.items()],
        weights,
    )
    whole = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=max(model.ir_version for model in models)
    )
    lean = Extractor(whole).extract_model(["x"], list(shapes))   # what no output needs is left out
    onnx.checker.check_model(lean, full_check=True)
    content: bytes = lean.SerializeToString()
    return content


def _add_swing(nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], contract: Contract, newest: str) -> str:
    """A row whose residual is |residual of `newest`|: x - |x - newest|."""
    graph = Graph(contract, prefix="swing.")
    now = graph.newest_scored()
    apart = graph.add("Abs", [graph.add("Sub", [now, newest], "apart")], "swing")
    rebuilt = graph.add("Sub", [now, apart], "rebuilt_row")
    nodes += graph.nodes
    weights += graph.weights
    return rebuilt


def memory_lengths(contract: Contract) -> tuple[int, ...]:
    """Rows that the memory members compare, within the contract's window."""
    return tuple(sorted({min(length, contract.window) for length in MEMORY_LENGTHS}))


def memory_windows(prepared: Prepared, most: int) -> np.ndarray:
    """Normal windows of the scored channels worth keeping, far from one another. (p, T, S) float32."""
    windows = prepared.windows(FIT, CANDIDATES)[:, :, prepared.contract.sensors_in_inputs]
    if len(windows) <= most:
        return windows
    return windows[spread(windows.reshape(len(windows), -1), most)]


def spread(points: np.ndarray, count: int) -> np.ndarray:
    """Indices of `count` points, each farthest from those chosen before it, ascending. Source: Gonzalez 1985.

    points : (n, F).
    """
    size = np.square(points).sum(axis=1)
    chosen = [0]
    nearest = np.full(len(points), np.inf)
    for _ in range(count - 1):
        last = chosen[-1]
        np.minimum(nearest, size + size[last] - 2 * (points @ points[last]), out=nearest)
        nearest[chosen[-1]] = -1.0   # rounding must not choose it twice
        chosen.append(int(nearest.argmax()))
    return np.sort(np.array(chosen))


def fit_memory(kept: np.ndarray, contract: Contract, length: int) -> bytes:
    """Residual: root mean square distance, a channel, between the last `length` rows and the nearest ones kept.

    kept : (p, T, S) float32, scaled and filled windows.
    """
    if not len(kept):
        raise BadInput("a memory needs at least one whole window of normal rows")
    rows = np.ascontiguousarray(kept[:, -length:])                                          # (p,W,S)
    flat = rows.reshape(len(rows), -1)                                                      # (p,W*S)
    graph = Graph(contract)
    zero = graph.constant("zero", np.zeros(1, dtype=np.float32))
    time = graph.constant("time", np.array([1]))
    graph.add("Mul", [graph.scored(), zero], "rebuilt")
    graph.add("ReduceMean", ["scored", time], "latent", keepdims=0)
    recent = graph.slice_time(contract.window - length, contract.window, "recent", source="scored")
    query = graph.add("Flatten", [recent], "query", axis=1)
    far = graph.affine(query, -2 * flat.T, np.square(flat).sum(axis=1), "far")              # |m|^2 - 2 q.m
    place = graph.add("ArgMin", [far], "place", axis=1, keepdims=0)
    nearest = graph.add("Gather", [graph.constant("kept", rows), place], "nearest", axis=0)  # (b,W,S)
    apart = graph.add("Sub", [recent, nearest], "apart")
    square = graph.add("ReduceMean", [graph.add("Mul", [apart, apart], "apart_squared"), time], "square", keepdims=1)
    graph.add("Sub", [graph.newest_scored(), graph.add("Sqrt", [square], "distance")], "newest")
    return graph.finish(len(contract.sensors))

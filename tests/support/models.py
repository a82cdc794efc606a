"""Small models with known weights, made without training."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.codec.train import train_codec
from pipeline.core.contract import Channel, Contract, EpisodeRule
from pipeline.core.scaling import Scaling
from pipeline.core.score import Scorer
from pipeline.registry.bundle import Bundle, write_bundle
from pipeline.scoring.gate import make_golden
from pipeline.scoring.session import Session
from pipeline.scoring.stream import Model


def small_contract(channels: int = 3, **changes: object) -> Contract:
    """Windows of 8 rows, 30 rows of memory, spans of 20 s."""
    fields: dict[str, object] = {
        "channels": tuple(Channel(name=f"c{i}", bound=0.01) for i in range(channels)),
        "window": 8, "memory": 30, "span_ms": 20_000, "max_rows": 15, "max_gap_ms": 5_000, "allowance_ms": 5_000,
        "episode": EpisodeRule(rows_on=2, rows_off=2, merge_ms=3_000),
    }
    return Contract(**(fields | changes))  # type: ignore[arg-type]


def linear_autoencoder(contract: Contract, latent: int, seed: int, members: int = 1) -> bytes:
    """ONNX bytes of a linear autoencoder with random weights."""
    rng = np.random.default_rng(seed)
    window, inputs, sensors = contract.window, len(contract.inputs), len(contract.sensors)
    encode = rng.normal(0, (window * inputs) ** -0.5, (window * inputs, latent)).astype(np.float32)
    decode = rng.normal(0, latent**-0.5, (latent, window * sensors)).astype(np.float32)
    newest = np.concatenate([decode[:, -sensors:] * (1 + 0.1 * member) for member in range(members)], axis=1)
    tensors = {"encode": encode, "decode": decode, "last": np.ascontiguousarray(newest),
               "flat": np.array([-1, window * inputs]), "whole": np.array([-1, window, sensors]),
               "rows": np.array([-1, members, sensors])}
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["xf"]), helper.make_node("MatMul", ["xf", "encode"], ["pre"]),
        helper.make_node("Tanh", ["pre"], ["latent"]),
        helper.make_node("MatMul", ["latent", "decode"], ["yf"]),
        helper.make_node("Reshape", ["yf", "whole"], ["rebuilt"]),
        helper.make_node("MatMul", ["latent", "last"], ["nf"]), helper.make_node("Reshape", ["nf", "rows"], ["newest"]),
    ]
    graph = helper.make_graph(
        nodes, "linear", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", window, inputs])],
        [
            helper.make_tensor_value_info("newest", TensorProto.FLOAT, ["b", members, sensors]),
            helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["b", latent]),
            helper.make_tensor_value_info("rebuilt", TensorProto.FLOAT, ["b", window, sensors]),
        ],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()  # type: ignore[no-any-return]


def small_scorer(contract: Contract, members: int = 1, threshold: float = 1.0) -> Scorer:
    """Unit covariance, three constants."""
    sensors = len(contract.sensors)
    shape = (1, members, 3, sensors)
    return Scorer(
        alphas=np.array([1.0, 0.3, 0.1]), length=contract.filter_length, clip=6.0, mean=np.zeros(shape),
        whiten=np.broadcast_to(np.eye(sensors), (*shape, sensors)).copy(), sd=np.ones(shape),
        member_threshold=np.full((members, 3), 2.0), weight=np.full((members, 3), 1 / (3 * members)),
        threshold=threshold, shift_mean=np.zeros((1, sensors)), shift_whiten=np.eye(sensors)[None],
    )


def write_small_bundle(
    folder: Path, contract: Contract, seed: int = 0, threshold: float = 1.0, latent_codec: bytes | None = None,
) -> Bundle:
    """The same model as `small_model`, as a bundle on disk."""
    model, scorer = linear_autoencoder(contract, 4, seed), small_scorer(contract, threshold=threshold)
    channels = len(contract.channels)
    return write_bundle(
        folder, contract=contract, scaling=Scaling((), np.zeros((1, channels)), np.ones((1, channels))), scorer=scorer,
        model=model, golden=make_golden(Session(model), scorer, contract), family="linear", members=("linear",),
        seed=seed, latent_codec=latent_codec,
    )


def model_of(bundle: Bundle) -> Model:
    """A bundle, ready to score."""
    return Model(bundle.digest, Session(bundle.model), bundle.scaling, bundle.scorer, bundle.codec, bundle.model,
                 bundle.latent_codec)


@cache
def latent_model(contract: Contract, seed: int = 0, threshold: float = 1.0) -> Model:
    """A `small_model` that latent blocks can be written with."""
    model = small_model(contract, seed, threshold=threshold)
    graph = linear_autoencoder(contract, 4, seed)
    rows = np.random.default_rng(seed).normal(0, 1, (200, contract.window, len(contract.inputs))).astype(np.float32)
    latents = model.session.run(rows).latent
    codec = train_codec([latents], 0.2 * latents.std(axis=0).astype(np.float64), block_rows=4)
    return replace(model, graph=graph, latent_codec=codec.to_bytes())


def small_model(contract: Contract, seed: int = 0, members: int = 1, threshold: float = 1.0) -> Model:
    """A model whose digest is its seed."""
    channels = len(contract.channels)
    scaling = Scaling((), np.zeros((1, channels)), np.ones((1, channels)))
    session = Session(linear_autoencoder(contract, 4, seed, members))
    return Model(f"{seed:064x}", session, scaling, small_scorer(contract, members, threshold))

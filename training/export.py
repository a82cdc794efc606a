"""From torch to one ONNX file, and the proof that it says the same.

Graph: input `x` (b,T,I) float32, scaled and filled; outputs `newest` (b,M,S) the rebuilt newest row, `latent` (b,D),
`rebuilt` (b,T,S). The batch is the only free axis. An example batch of one would silently fix it at one, so it is 3,
and the exported shape is checked.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from pipeline.errors import BadBundle
from training.models import Autoencoder

OPSET = 20
PARITY_BATCHES = (1, 2, 17, 256)
OUTPUTS = ("newest", "latent", "rebuilt")


class _Streamed(nn.Module):
    """An autoencoder as the stream calls it."""

    def __init__(self, model: Autoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.model.encode(x)                                     # (b,T,I) -> (b,D)
        return self.model.newest(z).unsqueeze(1), z, self.model.decode(z)


def to_onnx(model: Autoencoder) -> bytes:
    """One ONNX file, weights inside. Raises BadBundle when the graph came out with a fixed batch or other names."""
    shape = model.shape
    example = torch.zeros(3, shape.rows, shape.inputs)
    batch = torch.export.Dim("b", min=1, max=65536)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet("torch.onnx", "onnxscript"):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Streamed(model.eval()), (example,), dynamo=True, external_data=False, input_names=["x"],
            output_names=list(OUTPUTS), dynamic_shapes={"x": {0: batch}}, opset_version=OPSET, verbose=False)
        assert program is not None
    proto = program.model_proto
    _forget_the_source(proto)
    content: bytes = proto.SerializeToString()
    check_shapes(content, shape.rows, shape.inputs, shape.sensors, shape.latent)
    return content


def _forget_the_source(proto: onnx.ModelProto) -> None:
    """Leaves out torch's notes on each node: paths of this machine, which change the digest from one to the next."""
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def check_shapes(content: bytes, rows: int, inputs: int, sensors: int, latent: int) -> None:
    """Raises BadBundle unless names, fixed sizes and the free batch are what the stream needs."""
    graph = onnx.load_from_string(content).graph
    want = {"x": (rows, inputs), "newest": (1, sensors), "latent": (latent,), "rebuilt": (rows, sensors)}
    have = {}
    for value in [*graph.input, *graph.output]:
        dims = value.type.tensor_type.shape.dim
        have[value.name] = tuple(dim.dim_value for dim in dims[1:])
        if not dims or not dims[0].dim_param:
            raise BadBundle(f"export: the batch of {value.name!r} is not free")
    if have != want:
        raise BadBundle(f"export: the graph has {have}, the stream needs {want}")


def parity(model: Autoencoder, content: bytes, windows: np.ndarray) -> dict[int, float]:
    """Largest |torch - ONNX Runtime| / max(1, |torch|) over all outputs, for each batch size.

    windows : (n, T, I) float32, real ones; repeated where n is less than the batch.
    Raises BadBundle above 1e-5.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    streamed = _Streamed(model.eval())
    worst = {}
    for size in PARITY_BATCHES:
        x = np.resize(windows, (size, *windows.shape[1:])).astype(np.float32)
        with torch.no_grad():
            expected = [tensor.numpy() for tensor in streamed(torch.from_numpy(x))]
        got = session.run(list(OUTPUTS), {"x": x})
        worst[size] = max(
            float((np.abs(a - b) / np.maximum(1.0, np.abs(a))).max()) for a, b in zip(expected, got, strict=True))
        if not worst[size] <= 1e-5:
            raise BadBundle(f"export: ONNX Runtime is {worst[size]:.2g} off torch at batch {size}; at most 1e-5")
    return worst


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


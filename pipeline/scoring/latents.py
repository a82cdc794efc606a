"""Rows from latents: the part of a model's graph behind `latent`, cut out so that a reader needs no encoder."""

import hashlib

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper
from onnx.utils import Extractor

from pipeline.codec.latent import LatentBlock, coded_latents, encode_latent, window_ends
from pipeline.codec.model import ID_BYTES, CodecModel
from pipeline.errors import BadBundle
from pipeline.scoring.session import CHUNK

LEAST_OPSET = 13       # of ONNX, whose DequantizeLinear knows an axis
LEAST_WEIGHTS = 256    # a matrix of fewer is not worth its extra node


def decoder_graph(model: bytes) -> bytes:
    """The decoder of a model: input `latent` (b, D), output `rebuilt` (b, T, S); `narrows.codecs` keeps it by its id.

    Its matrices are int8, each row or column with its own scale: they round far finer than the latents are coded, and
    blocks state the error that this graph makes.
    Raises BadBundle where `rebuilt` needs more than the latent (a predictor, not an autoencoder).
    """
    try:
        whole = onnx.load_from_string(model)
        _read_from_latent(whole.graph)
        part = Extractor(whole).extract_model(["latent"], ["rebuilt"])
        if any(one.version >= LEAST_OPSET for one in part.opset_import if one.domain == ""):
            _round_weights(part.graph)
        _drop_notes(part)
        onnx.checker.check_model(part)
    except Exception as error:
        raise BadBundle(f"latent blocks need a model whose `rebuilt` follows from its `latent`: {error}") from error
    return part.SerializeToString(deterministic=True)


def _read_from_latent(graph: onnx.GraphProto) -> None:
    """What stands behind the latent reads nothing before it. In place.

    An ensemble hands its first member's latent on under another name: whatever reads the one reads the other. The
    number of windows, which a recurrent decoder asks of `x`, is the latent's too.
    """
    source = next((node.input[0] for node in graph.node if node.op_type == "Identity" and node.output[0] == "latent"),
                  None)
    for node in graph.node:
        asks_number = node.op_type == "Shape" and {(part.name, part.i) for part in node.attribute} >= {("end", 1)}
        same = {source, "x"} if asks_number else {source}
        if node.output[0] != "latent":
            node.input[:] = ["latent" if name in same else name for name in node.input]


def _round_weights(graph: onnx.GraphProto) -> None:
    """Float matrices become int8 and a DequantizeLinear, along the axis that misses less. In place."""
    nodes, weights = [], []
    for weight in graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype != np.float32 or values.ndim < 2 or values.size < LEAST_WEIGHTS:
            weights.append(weight)
            continue
        axis, scale, rounded = min(
            ((axis, *_rounded(values, axis)) for axis in range(2)),
            key=lambda way: float(np.square(way[1] * way[2].astype(np.float64) - values).sum()),
        )
        names = [f"{weight.name}.int8", f"{weight.name}.scale"]
        weights += map(numpy_helper.from_array, (rounded, scale.reshape(-1)), names)
        nodes.append(helper.make_node("DequantizeLinear", names, [weight.name], axis=axis))
    nodes += graph.node
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights)


def _drop_notes(model: onnx.ModelProto) -> None:
    """What an exporter notes beside the graph: traces, sources, shapes of what is between. In place."""
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    model.doc_string = model.graph.doc_string = ""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = node.name = ""


def _rounded(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """(scale of each slice along `axis`, broadcastable, float32; int8 values)."""
    others = tuple(place for place in range(values.ndim) if place != axis)
    largest = np.abs(values).max(axis=others, keepdims=True)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return scale, np.rint(values / scale).astype(np.int8)


class LatentDecoder:
    """Rebuilds rows from latents.

    location, scale : (S,) of the device (or the fleet), as the stream scaled its values.
    """

    def __init__(self, graph: bytes) -> None:
        self.id = hashlib.sha256(graph).hexdigest()[: 2 * ID_BYTES]
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def windows(self, latents: np.ndarray) -> np.ndarray:
        """Rebuilt windows, in scaled units; on padded chunks, so that none depends on its neighbours.

        latents : (W, D) float32 -> (W, T, S) float32.
        """
        parts = []
        for start in range(0, max(len(latents), 1), CHUNK):
            chunk = np.zeros((CHUNK, latents.shape[1]), np.float32)
            count = len(latents[start : start + CHUNK])
            chunk[:count] = latents[start : start + CHUNK]
            parts.append(self._session.run(["rebuilt"], {"latent": chunk})[0][:count])
        return np.concatenate(parts)

    @staticmethod
    def place(windows: np.ndarray, rows: int, window: int, location: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """The rows of a block's windows. (W, T, S) -> (n, S) float32 in the channels' units.

        A row of two windows is that of the later one. NaN for a channel that is taken out for the device.
        """
        out = np.zeros((rows, windows.shape[2]), np.float32)
        for end, rebuilt in zip(window_ends(rows, window).tolist(), windows, strict=True):
            first = max(end - window, 0)
            out[first:end] = rebuilt[window - (end - first) :]
        return (out * scale + location).astype(np.float32)

    def rebuild(
        self, latents: np.ndarray, rows: int, window: int, location: np.ndarray, scale: np.ndarray,
    ) -> np.ndarray:
        """(n, S) float32 in the channels' units. latents (W, D) of the windows at `window_ends`."""
        return self.place(self.windows(latents), rows, window, location, scale)

    def encode(
        self, ts_ms: np.ndarray | None, values: np.ndarray, latents: np.ndarray, window: int, model: CodecModel,
        location: np.ndarray, scale: np.ndarray,
    ) -> bytes:
        """A latent block that states what rebuilding it really misses.

        values (n, S) float32, NaN where missing; latents (W, D) of the windows at `window_ends`, from the scoring pass
        (no other encoder run is made); model : codec model of latents.
        """
        coded, read = coded_latents(latents, model)
        rebuilt = self.rebuild(read, len(values), window, location, scale)
        return encode_latent(ts_ms, coded, len(values), window, self.id, rebuilt.astype(np.float64) - values)

    def decode(self, block: LatentBlock, location: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """(n, S) float32 rows of a latent block. Raises BadBundle for a block of another decoder."""
        if block.decoder != self.id:
            raise BadBundle(f"the block needs decoder {block.decoder}, this is {self.id}: get it from narrows.codecs")
        return self.rebuild(block.latents, block.rows, block.window, location, scale)

"""Rows from latents: the part of a model's graph behind `latent`, cut out so that a reader needs no encoder."""

import hashlib

import numpy as np
import onnx
import onnxruntime as ort
from onnx.utils import Extractor

from pipeline.codec.latent import LatentBlock, coded_latents, encode_latent, window_ends
from pipeline.codec.model import ID_BYTES, CodecModel
from pipeline.errors import BadBundle
from pipeline.scoring.session import CHUNK


def decoder_graph(model: bytes) -> bytes:
    """The decoder of a model: input `latent` (b, D), output `rebuilt` (b, T, S); `narrows.codecs` keeps it by its id.

    Raises BadBundle where `rebuilt` needs more than the latent (a predictor, not an autoencoder).
    """
    try:
        part = Extractor(onnx.load_from_string(model)).extract_model(["latent"], ["rebuilt"])
        onnx.checker.check_model(part)
    except Exception as error:
        raise BadBundle(f"latent blocks need a model whose `rebuilt` follows from its `latent`: {error}") from error
    return part.SerializeToString(deterministic=True)


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

"""What one could pick instead: pcodec, zstd, SZ3 and zfp, each in the variants that suit blocks, with the same bound.

Each variant turns one block (n, C) float32 into bytes and back. Integer codecs get the block quantised to twice the
bound, float codecs get it scaled so that every channel's bound is 1. Model, dictionary, bounds and shape are counted to
none.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import zfpy
import zstandard
from pcodec import ChunkConfig, DeltaSpec
from pcodec.standalone import simple_compress, simple_decompress
from pysz import sz, szAlgorithm, szConfig, szErrorBoundMode

_AUTO, _PLAIN = ChunkConfig(), ChunkConfig(delta_spec=DeltaSpec.no_op())
_ZSTD = zstandard.ZstdCompressor(level=19)
_UNZSTD = zstandard.ZstdDecompressor()


class Variant(NamedTuple):
    """One way to use one codec. encode (n, C) float32 -> bytes; decode bytes -> (n, C) float32."""

    family: str
    name: str
    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes], np.ndarray]


def _packed(parts: list[bytes]) -> bytes:
    """Parts one behind the other; their lengths are not charged to the rival."""
    return b"".join(parts)


class _Integers:
    """A block as integers of twice the bound, and back. steps : (C,) float64."""

    def __init__(self, steps: np.ndarray, n: int) -> None:
        self.steps, self.n, self.channels = steps, n, len(steps)

    def of(self, x: np.ndarray) -> np.ndarray:
        """(n, C) float32 -> (C, n) int64."""
        return np.ascontiguousarray(np.rint(x.astype(np.float64) / self.steps).astype(np.int64).T)

    def back(self, k: np.ndarray) -> np.ndarray:
        """(C, n) integers -> (n, C) float32."""
        return (k.T * self.steps).astype(np.float32)

    def deltas(self, x: np.ndarray) -> np.ndarray:
        """First integers of all channels, then each channel's deltas. (C * n,) int64."""
        k = self.of(x)
        return np.concatenate([k[:, 0], np.diff(k, axis=1).reshape(-1)])

    def undelta(self, flat: np.ndarray) -> np.ndarray:
        """Inverse of `deltas`."""
        k = np.empty((self.channels, self.n), np.int64)
        k[:, 0], k[:, 1:] = flat[: self.channels], flat[self.channels :].reshape(self.channels, -1)
        return self.back(np.cumsum(k, axis=1))


def _pcodec(ints: _Integers) -> list[Variant]:
    shape = (ints.channels, ints.n)
    lengths: list[int] = []

    def split(data: bytes) -> np.ndarray:
        edges = np.cumsum([0, *lengths])
        return np.stack([simple_decompress(data[low:high]) for low, high in pairwise(edges)])

    def channels(x: np.ndarray) -> bytes:
        parts = [bytes(simple_compress(row, _AUTO)) for row in ints.of(x).astype(np.int32)]
        lengths[:] = [len(part) for part in parts]
        return _packed(parts)

    return [
        Variant("pcodec", "flat", lambda x: bytes(simple_compress(ints.of(x).astype(np.int32).ravel(), _AUTO)),
                lambda b: ints.back(simple_decompress(b).reshape(shape))),
        Variant("pcodec", "deltas", lambda x: bytes(simple_compress(ints.deltas(x).astype(np.int32), _PLAIN)),
                lambda b: ints.undelta(simple_decompress(b).astype(np.int64))),
        Variant("pcodec", "each channel", channels, lambda b: ints.back(split(b))),
    ]


def shuffled_deltas(ints: _Integers, x: np.ndarray) -> bytes:
    """Zigzag deltas as byte planes, lowest first, empty high planes left out; the first byte counts the planes."""
    deltas = np.diff(ints.of(x), axis=1, prepend=0)
    planes = ((deltas << 1) ^ (deltas >> 63)).astype("<u4").ravel().view(np.uint8).reshape(-1, 4).T
    used = max((i + 1 for i in range(4) if planes[i].any()), default=1)
    return bytes([used]) + np.ascontiguousarray(planes[:used]).tobytes()


def unshuffled(ints: _Integers, data: bytes) -> np.ndarray:
    """Inverse of `shuffled_deltas`."""
    planes = np.zeros((4, ints.channels * ints.n), np.uint8)
    planes[: data[0]] = np.frombuffer(data, np.uint8, offset=1).reshape(data[0], -1)
    zigzag = np.ascontiguousarray(planes.T).view("<u4").ravel().astype(np.int64)
    return ints.back(np.cumsum(((zigzag >> 1) ^ -(zigzag & 1)).reshape(ints.channels, ints.n), axis=1))


def _zstd(ints: _Integers, training: list[np.ndarray]) -> list[Variant]:
    def plain(x: np.ndarray) -> bytes:
        data = shuffled_deltas(ints, x)
        return data[:1] + _ZSTD.compress(data[1:])

    variants = [Variant("zstd-19", "shuffled deltas", plain,
                        lambda b: unshuffled(ints, b[:1] + _UNZSTD.decompress(b[1:])))]
    dictionary = trained_dictionary(ints, training)
    if dictionary is not None:
        with_dict = zstandard.ZstdCompressor(level=19, dict_data=dictionary, write_dict_id=False)
        without = zstandard.ZstdDecompressor(dict_data=dictionary)
        variants.append(Variant(
            "zstd-19 with dictionary", "shuffled deltas", lambda x: with_dict.compress(shuffled_deltas(ints, x)),
            lambda b: unshuffled(ints, without.decompress(b)),
        ))
    return variants


def trained_dictionary(ints: _Integers, training: list[np.ndarray]) -> zstandard.ZstdCompressionDict | None:
    """A dictionary of up to 32 KiB from training blocks of the same shape; None where they are too few."""
    samples = [shuffled_deltas(ints, x) for x in training]
    for size in (1 << 15, 1 << 13, 1 << 11):
        try:
            return zstandard.train_dictionary(size, samples, level=19)
        except zstandard.ZstdError:
            continue
    return None


def _floats(
    name: str, ints: _Integers, pack: Callable[[np.ndarray], bytes], unpack: Callable[..., np.ndarray],
) -> list[Variant]:
    """Variants of a float codec with bound 1: the block as a plane, as one line, channel by channel."""
    half, shape = ints.steps / 2, (ints.channels, ints.n)
    lengths: list[int] = []

    def scaled(x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray((x.astype(np.float64) / half).T.astype(np.float32))

    def back(y: np.ndarray) -> np.ndarray:
        return (y.reshape(shape).T.astype(np.float64) * half).astype(np.float32)

    def channels(x: np.ndarray) -> bytes:
        parts = [pack(row) for row in scaled(x)]
        lengths[:] = [len(part) for part in parts]
        return _packed(parts)

    def unchannels(data: bytes) -> np.ndarray:
        edges = np.cumsum([0, *lengths])
        return back(np.concatenate([unpack(data[low:high], (ints.n,)) for low, high in pairwise(edges)]))

    family, variant = name.split(" ", 1)
    return [
        Variant(family, f"{variant} plane", lambda x: pack(scaled(x)), lambda b: back(unpack(b, shape))),
        Variant(family, f"{variant} line", lambda x: pack(scaled(x).ravel()),
                lambda b: back(unpack(b, (ints.channels * ints.n,)))),
        Variant(family, f"{variant} each channel", channels, unchannels),
    ]


def _sz3(ints: _Integers) -> list[Variant]:
    variants = []
    for name, algorithm in (
        ("interpolation", szAlgorithm.INTERP_LORENZO), ("regression", szAlgorithm.LORENZO_REG),
        ("plain", szAlgorithm.NOPRED),
    ):
        config = szConfig()
        config.errorBoundMode, config.absErrorBound, config.cmprAlgo = szErrorBoundMode.ABS, 1.0, algorithm

        def pack(y: np.ndarray, config: szConfig = config) -> bytes:
            return sz.compress(y, config)[0].tobytes()

        def unpack(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
            return sz.decompress(np.frombuffer(data, np.uint8), np.float32, shape)[0]

        variants += _floats(f"SZ3 {name}", ints, pack, unpack)
    return variants


def _zfp(ints: _Integers) -> list[Variant]:
    def pack(y: np.ndarray) -> bytes:
        return zfpy.compress_numpy(y, tolerance=1.0, write_header=True)

    return _floats("zfp tolerance", ints, pack, lambda data, shape: zfpy.decompress_numpy(data).reshape(shape))


def bounded_rivals(bounds: np.ndarray, largest: np.ndarray, n: int, training: list[np.ndarray]) -> list[Variant]:
    """Every variant of every rival for blocks of n rows.

    bounds, largest : (C,) absolute bound and largest value of each channel; the step leaves one ulp of it to rounding.
    """
    ulp = np.spacing(np.maximum(largest, 1e-30).astype(np.float32)).astype(np.float64)
    ints = _Integers(np.maximum(2 * (bounds - ulp), 1e-300), n)
    return [*_pcodec(ints), *_zstd(ints, training), *_sz3(ints), *_zfp(ints)]


def lossless_rivals(channels: int, n: int) -> list[Variant]:
    """Variants that keep every bit: pcodec on floats, zstd on byte planes, zfp's reversible mode."""
    shape = (channels, n)

    def column(x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(x.T)

    def planes(x: np.ndarray) -> bytes:
        return np.ascontiguousarray(column(x).view(np.uint8).reshape(-1, 4).T).tobytes()

    def unplanes(data: bytes) -> np.ndarray:
        raw = np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(4, -1).T)
        return raw.view("<f4").reshape(shape).T

    return [
        Variant("pcodec", "floats", lambda x: bytes(simple_compress(column(x).ravel(), _AUTO)),
                lambda b: simple_decompress(b).reshape(shape).T),
        Variant("zstd-19", "byte planes", lambda x: _ZSTD.compress(planes(x)),
                lambda b: unplanes(_UNZSTD.decompress(b))),
        Variant("zfp", "reversible plane", lambda x: zfpy.compress_numpy(column(x)),
                lambda b: zfpy.decompress_numpy(b).reshape(shape).T),
        Variant("zfp", "reversible line", lambda x: zfpy.compress_numpy(column(x).ravel()),
                lambda b: zfpy.decompress_numpy(b).reshape(shape).T),
    ]

"""Latent blocks: small, and honest about their error."""

import numpy as np
import onnxruntime as ort
import pytest

from pipeline.codec import BadBlock
from pipeline.codec.latent import decode_latent, window_ends
from pipeline.codec.train import train_codec
from pipeline.core.contract import Channel, Contract
from pipeline.scoring.latents import LatentDecoder, decoder_graph
from pipeline.scoring.session import Session
from training.baselines import fit_pca, fit_raw
from training.ensemble import merge

T, S = 32, 8


def waves(rows: int, seed: int) -> np.ndarray:
    """(rows, 8) float32: eight mixes of two slow waves, with a little noise; unit scale."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(0).normal(0, 1, (2, S))
    t = np.arange(rows)
    return (np.stack([np.sin(t / 19), np.cos(t / 31)], 1) @ mix + rng.normal(0, 0.02, (rows, S))).astype(np.float32)


@pytest.fixture(scope="module")
def made() -> tuple[Session, LatentDecoder, np.ndarray]:
    """A PCA, its decoder, and latents of other windows to learn their codec from."""
    train = waves(4000, 1)
    windows = np.lib.stride_tricks.sliding_window_view(train, T, axis=0).transpose(0, 2, 1)   # (n, S, T) -> (n, T, S)
    contract = Contract(channels=tuple(Channel(name=f"c{c}") for c in range(S)), window=T, memory=2 * T)
    model = fit_pca(np.ascontiguousarray(windows[::3]), contract, kept=0.99)
    session = Session(model)
    return session, LatentDecoder(decoder_graph(model)), session.run(np.ascontiguousarray(windows[::T])).latent


@pytest.mark.parametrize(("rows", "factor"), [(64, 50), (512, 200)])
def test_a_latent_block_is_small_and_states_the_error_that_it_made(
    made: tuple[Session, LatentDecoder, np.ndarray], rows: int, factor: int,
) -> None:
    session, decoder, known = made
    codec = train_codec([known], 0.2 * known.std(axis=0).astype(np.float64), block_rows=16)
    values, location, scale = waves(rows, 2), np.zeros(S), np.ones(S)
    ends = window_ends(rows, T)
    runs = session.runs
    latents = session.run(np.stack([values[end - T : end] for end in ends])).latent
    ts_ms = 1_700_000_000_000 + 1000 * np.arange(rows)
    data = decoder.encode(ts_ms, values, latents, T, codec, location, scale)
    assert session.runs == runs + 1                         # one pass of the encoder, that of the score
    block = decode_latent(data, {codec.id: codec})
    error = np.abs(decoder.decode(block, location, scale).astype(np.float64) - values)
    assert (error.max(axis=0) <= block.largest).all()
    assert (block.largest <= 1.2 * error.max(axis=0)).all()
    assert (error.mean(axis=0) <= block.mean * 1.0001).all()
    assert (block.mean <= 1.7 * error.mean(axis=0)).all()
    assert block.ts_ms is not None
    assert (block.ts_ms == ts_ms).all()
    assert (values.nbytes + ts_ms.nbytes) / len(data) >= factor


def test_a_channel_that_latents_cant_hold_has_no_stated_error(
    made: tuple[Session, LatentDecoder, np.ndarray],
) -> None:
    _, decoder, known = made
    codec = train_codec([known], np.full(known.shape[1], 0.05), block_rows=16)
    values = waves(64, 3)
    values[5, 1], values[6, 2] = np.nan, np.inf
    block = decode_latent(
        decoder.encode(None, values, known[:2], T, codec, np.zeros(S), np.ones(S)), {codec.id: codec}
    )
    assert np.isinf(block.largest).tolist() == [False, True, True, *[False] * 5]


def test_a_window_is_rebuilt_to_the_same_bits_whatever_is_rebuilt_with_it(
    made: tuple[Session, LatentDecoder, np.ndarray],
) -> None:
    _, decoder, known = made
    whole = decoder.windows(known[:100])
    assert all((decoder.windows(known[i : i + 1])[0] == whole[i]).all() for i in (0, 7, 99))


def test_the_decoder_of_an_ensemble_is_its_first_members(made: tuple[Session, LatentDecoder, np.ndarray]) -> None:
    contract = Contract(channels=tuple(Channel(name=f"c{c}") for c in range(S)), window=T, memory=2 * T)
    windows = np.stack([waves(600, 1)[i : i + T] for i in range(500)])
    first = fit_pca(windows, contract, kept=0.99)
    both = merge([("pca", first), ("raw", fit_raw(windows, contract))], contract)
    z = Session(first).run(windows[:3]).latent
    alone, joined = (LatentDecoder(decoder_graph(graph)).windows(z) for graph in (first, both))
    assert (alone == joined).all()


def test_a_decoder_of_int8_matrices_is_a_third_and_rebuilds_the_same_but_for_their_rounding() -> None:
    contract = Contract(channels=tuple(Channel(name=f"c{c}") for c in range(S)), window=T, memory=2 * T)
    windows = np.stack([waves(600, 1)[i : i + T] for i in range(500)])
    graph = fit_pca(windows, contract, kept=0.9999)
    rebuilt = ort.InferenceSession(graph).run(["latent", "rebuilt"], {"x": windows[:50]})
    decoder = decoder_graph(graph)
    exact = rebuilt[1].astype(float)
    missed = LatentDecoder(decoder).windows(rebuilt[0]) - exact
    assert np.sqrt(np.square(missed).mean()) < 0.02 * exact.std()
    latents = rebuilt[0].shape[1]
    assert len(decoder) < 0.6 * 4 * (latents + 1) * T * S


def test_an_altered_latent_block_is_refused(made: tuple[Session, LatentDecoder, np.ndarray]) -> None:
    _, decoder, known = made
    codec = train_codec([known], np.full(known.shape[1], 0.05), block_rows=16)
    data = decoder.encode(None, waves(64, 3), known[:2], T, codec, np.zeros(S), np.ones(S))
    for size in range(len(data)):
        with pytest.raises(BadBlock):
            decode_latent(data[:size], {codec.id: codec})

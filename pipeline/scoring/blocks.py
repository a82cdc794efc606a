"""Complete blocks to frames, under one bundle: rows of episodes finer, latents where the stream's rules ask for them.

Invariant (tests/laws/test_line_laws.py): a frame is a function of the block, the contract, the digest and the rules.
A block that overlaps an episode is never left to latents: what is odd is what they can't rebuild.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.codec import CodecModel, decode_block, encode_blocks, pack_frame
from pipeline.codec.latent import encode_latent
from pipeline.core.block_rules import BlockRules
from pipeline.core.contract import Contract
from pipeline.errors import BadBundle
from pipeline.scoring.latents import LatentDecoder, decoder_graph
from pipeline.scoring.stream import Block, Model

MARGIN = 1e-5
"""Share of a channel's largest value that another machine's arithmetic may rebuild otherwise; kept off its bound."""


class Class(NamedTuple):
    """What blocks took of rows outside (or inside) of episodes. Errors as shares of the bound, 0 where that is 0."""

    rows: int
    bytes: int
    largest: float
    mean: float


class Coded(NamedTuple):
    """A frame.

    fine   : which of its blocks hold an episode's rows.   latent : channels that its latent block alone holds.
    normal, episode : bytes and errors by class.
    """

    frame: bytes
    fine: tuple[int, ...]
    latent: tuple[int, ...]
    normal: Class
    episode: Class


class _Piece(NamedTuple):
    """Rows for the bounded coder: ts_ms (n,), values (n, C), whether they are an episode's."""

    ts_ms: np.ndarray
    values: np.ndarray
    is_fine: bool


class _Latents(NamedTuple):
    """One block's latents: coded, and what rebuilding from them misses, (n, S) float64."""

    coded: bytes
    error: np.ndarray


class BlockCoder:
    """Encodes blocks of one digest.

    refused : why no latents can be written though the rules want them; "" where all is well.
    """

    def __init__(self, contract: Contract, model: Model, rules: BlockRules) -> None:
        self._contract, self._model, self._rules = contract, model, rules
        self._codec = None if model.codec is None else CodecModel.from_bytes(model.codec)
        share = rules.in_episode
        self._fine_bounds = None if share is None or share == 1 or not contract.bounds.any() else (
            share * contract.bounds
        )
        self._decoder: LatentDecoder | None = None
        self._latent_codec: CodecModel | None = None
        self._graph = b""
        self.refused = ""
        if rules.wants_latents:
            self._open()

    def _open(self) -> None:
        if self._model.latent_codec is None:
            self.refused = "the bundle holds no codec model of latents: train it again"
            return
        try:
            self._graph = decoder_graph(self._model.graph)
        except BadBundle as error:
            self.refused = str(error)
            return
        self._decoder = LatentDecoder(self._graph)
        self._latent_codec = CodecModel.from_bytes(self._model.latent_codec)

    def codec_models(self) -> dict[str, bytes]:
        """Codec models that a reader of these blocks needs, by id."""
        found = {} if self._codec is None else {self._codec.id: self._codec.to_bytes()}
        if self._latent_codec is not None:
            found[self._latent_codec.id] = self._latent_codec.to_bytes()
        return found

    @property
    def decoder(self) -> tuple[str, bytes] | None:
        """(id, ONNX bytes) of the graph that a reader of latent blocks needs."""
        return None if self._decoder is None else (self._decoder.id, self._graph)

    def encode(self, blocks: Sequence[Block], devices: Sequence[str]) -> list[Coded]:
        """One frame a block."""
        latents = self._latents(blocks, devices)
        plans = [
            self._plans(block, device, latents.get(i))
            for i, (block, device) in enumerate(zip(blocks, devices, strict=True))
        ]
        pieces = [piece for plan in plans for way in plan for piece in way[0]]
        coded = iter(self._bounded(pieces))
        done = []
        for i, (block, plan) in enumerate(zip(blocks, plans, strict=True)):
            ways = [
                self._frame(block, [(piece, *next(coded)) for piece in parts], left, latents.get(i) if takes else None)
                for parts, left, takes in plan
            ]
            done.append(min(ways, key=lambda way: len(way.frame)))
        return done

    # ---------------------------------------------------------------- what goes where

    def _fine_rows(self, block: Block) -> np.ndarray:
        """Rows of episodes and those before them. (n,) bool."""
        fine = block.in_episode.copy()
        for start in np.flatnonzero(np.diff(block.in_episode.astype(np.int8), prepend=0) == 1).tolist():
            fine[max(0, start - self._rules.rows_before) : start] = True
        return fine

    def _plans(
        self, block: Block, device: str, latents: _Latents | None
    ) -> list[tuple[list[_Piece], np.ndarray, bool]]:
        """Ways to keep a block: bounded pieces, channels that are left to the latents (C,), whether it has those."""
        none = np.zeros(len(self._contract.channels), bool)
        if latents is None:
            if self._fine_bounds is None or not block.in_episode.any():
                return [([_Piece(block.ts_ms, block.values, bool(block.in_episode.any()))], none, False)]
            fine = self._fine_rows(block)
            edges = np.flatnonzero(np.append(True, fine[1:] != fine[:-1])).tolist()
            return [([
                _Piece(block.ts_ms[start:stop], block.values[start:stop], bool(fine[start]))
                for start, stop in zip(edges, [*edges[1:], len(fine)], strict=True)
            ], none, False)]
        kinds = np.array(self._rules.kinds(device, self._contract.names))
        sensors, bounds = self._contract.sensors, self._contract.bounds
        whole = np.isfinite(latents.error).all(axis=0)
        able, kept = none.copy(), none.copy()
        able[sensors] = whole
        with np.errstate(invalid="ignore"):
            most = np.abs(latents.error).max(axis=0) + MARGIN * np.abs(block.values[:, sensors]).max(axis=0)
            kept[sensors] = whole & (most <= bounds[sensors])
        left = able & (kinds == "latent")
        ways = [(self._without(block, left), left, bool(left.any() or (kinds == "both").any()))]
        more = left | ((kinds == "auto") & kept)
        if (more & ~left).any():
            ways.append((self._without(block, more), more, True))
        return ways

    def _without(self, block: Block, left: np.ndarray) -> list[_Piece]:
        """The block for the bounded coder: channels that are left out are missing there, for a few bytes."""
        if left.all():
            return []
        if not left.any():
            return [_Piece(block.ts_ms, block.values, False)]
        return [_Piece(block.ts_ms, np.where(left, np.float32(np.nan), block.values), False)]

    # ---------------------------------------------------------------- bytes

    def _bounded(self, pieces: Sequence[_Piece]) -> list[tuple[bytes, np.ndarray]]:
        """(block, (C, 2) errors) of each piece."""
        coded: list[tuple[bytes, np.ndarray]] = [(b"", np.empty(0))] * len(pieces)
        for is_fine in (False, True):
            places = [i for i, piece in enumerate(pieces) if piece.is_fine == is_fine]
            bounds = self._contract.bounds
            if is_fine and self._fine_bounds is not None:
                bounds = self._fine_bounds
            errors = np.empty((len(places), len(bounds), 2))
            data = encode_blocks([pieces[i][:2] for i in places], bounds, self._codec, errors=errors)
            for i, one, error in zip(places, data, errors, strict=True):
                coded[i] = one, error
        return coded

    def _latents(self, blocks: Sequence[Block], devices: Sequence[str]) -> Mapping[int, _Latents]:
        """Of the blocks that the rules want latents of, whose windows the model saw whole, and that are calm."""
        if self._decoder is None or self._latent_codec is None:
            return {}
        names, codec, decoder = self._contract.names, self._latent_codec, self._decoder
        wanted = [
            i for i, block in enumerate(blocks)
            if block.latents is not None and not block.in_episode.any()
            and any(kind != "bounded" for kind in self._rules.kinds(devices[i], names))
        ]
        if not wanted:
            return {}
        rows = [(None, latents) for i in wanted if (latents := blocks[i].latents) is not None]
        coded = encode_blocks(rows, codec.bounds, codec)
        read = [decode_block(data, {codec.id: codec}).values for data in coded]
        windows = decoder.windows(np.concatenate(read))
        edges = np.cumsum([0, *map(len, read)])
        scaling, sensors = self._model.scaling, self._contract.sensors
        index = scaling.index([devices[i] for i in wanted])
        found = {}
        for place, i in enumerate(wanted):
            values = blocks[i].values[:, sensors]
            rebuilt = decoder.place(
                windows[edges[place] : edges[place + 1]], len(values), self._contract.window,
                scaling.location[index[place], sensors], scaling.scale[index[place], sensors],
            )
            with np.errstate(invalid="ignore", over="ignore"):
                found[i] = _Latents(coded[place], rebuilt.astype(np.float64) - values)
        return found

    def _frame(
        self, block: Block, pieces: list[tuple[_Piece, bytes, np.ndarray]], left: np.ndarray, latents: _Latents | None
    ) -> Coded:
        data = [one for _, one, _ in pieces]
        if latents is not None and self._decoder is not None:
            data.append(encode_latent(
                None if pieces else block.ts_ms, latents.coded, len(block.ts_ms), self._contract.window,
                self._decoder.id, latents.error,
            ))
        parts: tuple[list[tuple[int, int, np.ndarray]], ...] = ([], [])
        for piece, one, error in pieces:
            parts[piece.is_fine].append((len(piece.ts_ms), len(one), error / [1, len(piece.ts_ms)]))
        if latents is not None:
            error = np.zeros((len(left), 2))
            missed = np.abs(latents.error)
            error[self._contract.sensors] = np.stack([missed.max(axis=0), missed.mean(axis=0)], axis=1)
            error[~left] = 0
            parts[0].append((0 if pieces else len(block.ts_ms), len(data[-1]), error))
        return Coded(
            pack_frame(data), tuple(i for i, (piece, _, _) in enumerate(pieces) if piece.is_fine),
            tuple(np.flatnonzero(left).tolist()), self._class(parts[0]), self._class(parts[1]),
        )

    def _class(self, parts: list[tuple[int, int, np.ndarray]]) -> Class:
        """parts : rows, bytes, (C, 2) largest and mean error."""
        rows, bounds = sum(part[0] for part in parts), self._contract.bounds
        bounded = bounds > 0
        if not parts or not bounded.any():
            return Class(rows, sum(part[1] for part in parts), 0.0, 0.0)
        shares = np.stack([part[2][bounded] / bounds[bounded, None] for part in parts])      # (P, C, 2)
        weight = np.array([part[0] or rows for part in parts], np.float64)
        return Class(
            rows, sum(part[1] for part in parts), float(shares[:, :, 0].max()),
            float((shares[:, :, 1].mean(axis=1) * weight).sum() / max(rows, 1)),
        )

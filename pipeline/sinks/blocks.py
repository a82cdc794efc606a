"""Blocks back to rows, anywhere: finds the codec model and the contract that each block names."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

import msgspec
import numpy as np

from pipeline.codec import BadBlock, CodecModel, decode_block, unpack_frame
from pipeline.codec.block import LATENT, kind_of_block
from pipeline.codec.latent import LatentBlock, Rebuilder, decode_latent
from pipeline.core.contract import Contract, parse_contract
from pipeline.core.scaling import Scaling
from pipeline.errors import BadInput
from pipeline.sinks.messages import BlockLabel, read_block_label
from pipeline.sinks.reader import SeenOnce
from pipeline.sinks.records import contract_key, find_whole


class Labelled(Protocol):
    """A record of `narrows.blocks`, whoever read it."""

    @property
    def headers(self) -> Iterable[tuple[str, bytes]]: ...
    @property
    def value(self) -> bytes | None: ...


class BlockReader:
    """Decodes records of `narrows.blocks`.

    fetch     : what `narrows.codecs` says now, by key; asked again where a block names something newer.
    contracts : of configured streams, by stream: these need not be in `narrows.codecs`.
    open_decoder : makes a decoder graph ready, for latent blocks; asked for at the first of them.
    """

    def __init__(
        self, fetch: Callable[[], Mapping[bytes, bytes]], contracts: Mapping[str, Contract],
        open_decoder: Callable[[bytes], Rebuilder],
    ) -> None:
        self._fetch, self._open_decoder = fetch, open_decoder
        self._decoders: dict[str, Rebuilder] = {}
        self._scalings: dict[str, Scaling] = {}
        self._held: Mapping[bytes, bytes] = {}
        self._contracts = {contract.hash[:12]: contract for contract in contracts.values()}
        self._models: dict[str, CodecModel] = {}

    def contract(self, label: BlockLabel) -> Contract:
        """The contract that a block was written under. Raises BadInput where nobody has it."""
        if label.contract not in self._contracts:
            held = self._find(contract_key(label.contract))
            if held is None:
                raise BadInput(
                    f"contract {label.contract} is neither in the configuration nor in narrows.codecs, so the columns "
                    "have no names: --config with the stream that the block was written for"
                )
            self._contracts[label.contract] = parse_contract(msgspec.json.decode(held))
        return self._contracts[label.contract]

    def rows(self, label: BlockLabel, frame: bytes) -> tuple[np.ndarray, np.ndarray]:
        """(n,) int64 ms and (n, C) float32 of a record's value. Raises BadBlock, BadInput."""
        contract = self.contract(label)
        width = len(contract.names)
        parts = unpack_frame(frame)
        blocks = [decode_block(data, self._model) for data in parts if kind_of_block(data) != LATENT]
        latents = [decode_latent(data, self._model) for data in parts if kind_of_block(data) == LATENT]
        times = [block.ts_ms for block in blocks if block.ts_ms is not None]
        if len(times) < len(blocks) or any(block.values.shape[1] != width for block in blocks):
            raise BadBlock("no timestamps in the block, or other columns than its contract")
        if blocks:
            ts_ms, values = np.concatenate(times), np.concatenate([block.values for block in blocks])
        elif latents and latents[0].ts_ms is not None:
            ts_ms = latents[0].ts_ms
            values = np.full((len(ts_ms), width), np.nan, np.float32)
        else:
            raise BadBlock("a frame without rows, or without their timestamps")
        if label.latent:
            left = np.array(label.latent)
            if len(latents) != 1 or latents[0].rows != len(values) or not np.isin(left, contract.sensors).all():
                raise BadBlock("the frame holds no latents of the channels that its label leaves to them")
            values[:, left] = self._rebuilt(label, latents[0])[:, np.searchsorted(contract.sensors, left)]
        return ts_ms, values

    def _rebuilt(self, label: BlockLabel, block: LatentBlock) -> np.ndarray:
        """(n, S) float32 of a latent block."""
        contract = self.contract(label)
        if block.decoder not in self._decoders:
            self._decoders[block.decoder] = self._open_decoder(self._find_whole("decoder", block.decoder))
        digest = label.digest[:12]
        if digest not in self._scalings:
            self._scalings[digest] = Scaling.from_bytes(self._find_whole("scaling", digest))
        scaling = self._scalings[digest]
        index = int(scaling.index([label.device])[0])
        sensors = contract.sensors
        return self._decoders[block.decoder].decode(
            block, scaling.location[index, sensors], scaling.scale[index, sensors]
        )

    def _find_whole(self, kind: str, name: str) -> bytes:
        found = find_whole(self._held, kind, name)
        if found is None:
            self._held = self._fetch()
            found = find_whole(self._held, kind, name)
        if found is None:
            raise BadInput(f"the latent block needs {kind} {name}, which is not in narrows.codecs")
        return found

    def _model(self, name: str) -> CodecModel | None:
        if name not in self._models:
            held = self._find(name.encode())
            if held is None:
                return None
            self._models[name] = CodecModel.from_bytes(held)
        return self._models[name]

    def _find(self, key: bytes) -> bytes | None:
        if key not in self._held:
            self._held = self._fetch()
        return self._held.get(key)


class LabelledBlock(NamedTuple):
    """A record of `narrows.blocks`. summary : bytes of `codec.summary`, None where the stream keeps none."""

    label: BlockLabel
    frame: bytes
    summary: bytes | None


def each_once(records: Iterable[Labelled], devices: Iterable[str] = ()) -> Iterator[LabelledBlock]:
    """Each block once, the log's own (final) over one of the wall clock with the same id; `devices` alone if given."""
    wanted = frozenset(devices)
    seen = SeenOnce()
    provisional: dict[str, LabelledBlock] = {}
    for record in records:
        label = read_block_label(record.headers)
        if (wanted and label.device not in wanted) or not seen.is_new(label.id, label.final):
            continue
        block = LabelledBlock(label, record.value or b"", dict(record.headers).get("summary"))
        if label.final:
            provisional.pop(label.id, None)
            yield block
        else:
            provisional[label.id] = block
    yield from provisional.values()

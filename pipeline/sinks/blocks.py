"""Blocks back to rows, anywhere: finds the codec model and the contract that each block names."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

import msgspec
import numpy as np

from pipeline.codec import BadBlock, CodecModel, decode_block, unpack_frame
from pipeline.core.contract import Contract, parse_contract
from pipeline.errors import BadInput
from pipeline.sinks.messages import BlockLabel, read_block_label
from pipeline.sinks.reader import SeenOnce
from pipeline.sinks.records import contract_key


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
    """

    def __init__(self, fetch: Callable[[], Mapping[bytes, bytes]], contracts: Mapping[str, Contract]) -> None:
        self._fetch = fetch
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
        width = len(self.contract(label).names)
        blocks = [decode_block(data, self._model) for data in unpack_frame(frame)]
        times = [block.ts_ms for block in blocks if block.ts_ms is not None]
        if not blocks or len(times) < len(blocks) or any(block.values.shape[1] != width for block in blocks):
            raise BadBlock("no timestamps in the block, or other columns than its contract")
        return np.concatenate(times), np.concatenate([block.values for block in blocks])

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


def each_once(records: Iterable[Labelled], devices: Iterable[str] = ()) -> Iterator[tuple[BlockLabel, bytes]]:
    """Each block once, the log's own (final) over one of the wall clock with the same id; `devices` alone if given."""
    wanted = frozenset(devices)
    seen = SeenOnce()
    provisional: dict[str, tuple[BlockLabel, bytes]] = {}
    for record in records:
        label = read_block_label(record.headers)
        if (wanted and label.device not in wanted) or not seen.is_new(label.id, label.final):
            continue
        if label.final:
            provisional.pop(label.id, None)
            yield label, record.value or b""
        else:
            provisional[label.id] = label, record.value or b""
    yield from provisional.values()

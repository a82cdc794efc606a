"""Which decoder a stream's format asks for."""

from pipeline.core.contract import Contract
from pipeline.formats.arrow import ArrowDecoder
from pipeline.formats.records import LongDecoder, WideDecoder
from pipeline.formats.spec import Format

Decoder = WideDecoder | LongDecoder | ArrowDecoder


def make_decoder(contract: Contract, spec: Format) -> Decoder:
    """The decoder that the stream's format asks for. Raises BadInput where the format contradicts itself."""
    if spec.encoding == "arrow":
        return ArrowDecoder(contract, spec)
    return WideDecoder(contract, spec) if spec.layout == "wide" else LongDecoder(contract, spec)

"""Bytes to columns: decoders of stream records. Files are read by `pipeline.formats.files`."""

from pipeline.formats.decoding import Decoder, make_decoder
from pipeline.formats.readings import LongReadings, Readings, Reason, Rejects
from pipeline.formats.records import LongDecoder, WideDecoder
from pipeline.formats.spec import Format

__all__ = [
    "Decoder",
    "Format",
    "LongDecoder",
    "LongReadings",
    "Readings",
    "Reason",
    "Rejects",
    "WideDecoder",
    "make_decoder",
]

"""Bytes to columns: decoders of stream records. Files are read by `pipeline.formats.files`."""

from pipeline.formats.json import JsonDecoder, LongDecoder, WideDecoder, make_decoder
from pipeline.formats.readings import LongReadings, Readings, Reason, Rejects
from pipeline.formats.spec import Format

__all__ = [
    "Format",
    "JsonDecoder",
    "LongDecoder",
    "LongReadings",
    "Readings",
    "Reason",
    "Rejects",
    "WideDecoder",
    "make_decoder",
]

"""Bounded blocks of sensor rows: every value within its bound, readable without the model that scored them."""

from pipeline.codec.block import Block, decode_block, encode_block, encode_blocks, model_of_block, warm_up
from pipeline.codec.frame import pack_frame, unpack_frame
from pipeline.codec.model import CodecModel
from pipeline.codec.wire import BadBlock

__all__ = [
    "BadBlock", "Block", "CodecModel", "decode_block", "encode_block", "encode_blocks", "model_of_block", "pack_frame",
    "unpack_frame", "warm_up",
]

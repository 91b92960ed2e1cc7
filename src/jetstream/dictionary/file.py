"""The file that has the dictionary, and what is accepted as it: the bytes with one SHA-256. Pure."""

from __future__ import annotations

from hashlib import sha256
from typing import Final

FILE: Final = "jetstream.zdict"  # in the data directory
URL_VARIABLE: Final = "JETSTREAM_ZSTD_DICTIONARY_URL"  # names its first source
BYTES: Final = 112_640  # its size
ID: Final = 1_612_007_021  # in its header, and in that of each message
SHA256: Final = "b8d77b46933aceecbdd5275a01241efc985c970c78162b8150cf67a26522f70c"


def is_public(data: bytes) -> bool:
    """Tell whether bytes are the public dictionary, and not another one or a part of it.

    Each client has it built in, so a message that is compressed against other bytes cannot be read.
    """
    return sha256(data).hexdigest() == SHA256

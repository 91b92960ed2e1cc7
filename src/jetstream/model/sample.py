"""A sample of all repos, by the hash of their DIDs: `sample=<percent>`. Pure.

The hash is CRC-32: it is fast, and clients can compute it in any language. It keeps no secret: whether a DID
is in a sample can be known before the account is created.
"""

from __future__ import annotations

import re
from typing import Final
from zlib import crc32

from jetstream.errors import InvalidParameter

# A sample is a number of ten-thousandths of all repos.
SAMPLE_WHOLE: Final = 10_000
_PERCENT: Final = re.compile(r"([0-9]{1,3})(?:\.([0-9]{1,2}))?", re.ASCII).fullmatch


def in_sample(did: bytes, sample: int) -> bool:
    """Tell whether a repo is in a sample of so many ten-thousandths of all repos.

    It is decided by the hash of the DID: the same repos each time, on every server. A larger sample has all
    of a smaller one.
    """
    return crc32(did) < hashes_below(sample)


def hashes_below(sample: int) -> int:
    """Return the bound of the hashes of a sample: its share of 2^32, rounded up.

    A hash below the bound is in the sample. That of the whole is 2^32, which every hash is below.
    """
    return -(-(sample << 32) // SAMPLE_WHOLE)


def parse_sample(percent: str) -> int:
    """Parse a percentage into ten-thousandths; the whole for an empty text. Raises InvalidParameter."""
    if not percent:
        return SAMPLE_WHOLE
    match = _PERCENT(percent)
    share = int(match[1]) * 100 + int((match[2] or "").ljust(2, "0")) if match else 0
    if not 0 < share <= SAMPLE_WHOLE:
        raise InvalidParameter(
            "sample", percent, "is not a percentage from 0.01 to 100 with at most two decimals"
        )
    return share

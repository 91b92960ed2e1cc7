"""The dictionary of this server, which is a part of the package and which every client may fetch. Pure.

It was made from simulated traffic (`scripts/train_dictionary.py`), so it holds nothing that a person wrote.
It fits the messages of every wire, and compresses real events better than the public one.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Final

from jetstream.delivery.framing.zstd import ZstdFraming

# In the package, beside this module.
PATH: Final = Path(__file__).with_name("own.zdict")


class OwnDictionary:
    """A dictionary in a file. The file is read when it is first needed: most servers never need it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def data(self) -> bytes:
        """The whole dictionary, as `GET /zstd-dictionary` returns it. Raises OSError for a missing file."""
        return self._path.read_bytes()

    @cached_property
    def framing(self) -> ZstdFraming:
        """The framing of messages that are compressed with it: one object, so that all readers share them."""
        return ZstdFraming(self.data)

    @property
    def dictionary_id(self) -> int:
        """Its ID, which clients name and which each frame has in its header."""
        return self.framing.dictionary_id


OWN: Final = OwnDictionary(PATH)

"""Which dictionary a request for compressed messages selects.

The dictionary of v1 clients is the public one, or that of `--zstd-dictionary`. A request with `compress` gets
it, and one with its ID as `zstdDictionary`. Our own is selected by its ID, and not together with `compress`:
clients that send that have the public one built in.
"""

from __future__ import annotations

from jetstream.delivery.framing.zstd import ZstdFraming
from jetstream.dictionary.own import OWN, OwnDictionary
from jetstream.dictionary.public import PublicDictionary
from jetstream.errors import InvalidParameter


class Dictionaries:
    """The dictionaries of a running server. `public` is None where that one is not offered."""

    def __init__(self, public: PublicDictionary | None, own: OwnDictionary = OWN) -> None:
        # Selected by `compress`, and by its ID.
        self._public = public
        # Selected by its ID alone.
        self._own = own

    @property
    def own_framing(self) -> ZstdFraming:
        """The framing with our own dictionary. The file is read at the first use; raises OSError."""
        return self._own.framing

    def framing(self, dictionary_id: int | None, compress: bool = False) -> ZstdFraming | None:
        """Return the framing that a request selects, or None while its dictionary is being fetched.

        `dictionary_id` is its `zstdDictionary`, `compress` whether it asks for compression as v1 clients do.
        Raises InvalidParameter for a dictionary that there is not.
        """
        self.check(dictionary_id, compress)
        public = self._selected_public(dictionary_id)
        return public.framing() if public else self.own_framing

    def check(self, dictionary_id: int | None, compress: bool = False) -> None:
        """Raise InvalidParameter for a dictionary that there is not. Nothing is fetched.

        So a public dictionary that is missing passes. The text of the error names the current one of our own.
        """
        if self._selected_public(dictionary_id):
            return
        if dictionary_id is None:
            text = "is not offered here: leave it out for plain JSON, or use zstdDictionary"
            raise InvalidParameter("compress", "true", f"{text}={self._own.dictionary_id}")
        if dictionary_id != self._own.dictionary_id:
            current = f"is not a dictionary here: the current one is {self._own.dictionary_id}"
            raise InvalidParameter("zstdDictionary", str(dictionary_id), f"{current}, at /zstd-dictionary")
        if compress:
            text = "selects another dictionary than compress=true or Socket-Encoding: leave one of them out"
            raise InvalidParameter("zstdDictionary", str(dictionary_id), text)

    def _selected_public(self, dictionary_id: int | None) -> PublicDictionary | None:
        """Return the public dictionary, if there is one and a request selects it."""
        public = self._public
        return public if public and dictionary_id in (None, public.dictionary_id) else None

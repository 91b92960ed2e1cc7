"""Bearer tokens (RFC 6750): who may subscribe, and who may operate. Pure.

A file has one token a line, and names it:

    # a comment
    alice:VGhpcyBpcyBhIHRva2Vu
    bob:sha256:0e5c5cc4b4d1bd8d2a7a3a1f9d2b6a6f…      a hash of it, 64 digits

Only hashes are kept. All of them are compared with that of a token that comes, in constant time.

`guard` reads the files and asks here. A token is 16 to 1,000 characters of those that RFC 6750 allows
(section 2.1); its name is 1 to 100 letters, digits, dots, underscores and hyphens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from hmac import compare_digest
from typing import Final, NamedTuple
from urllib.parse import unquote

# Bytes of a file. `TOKENS_MAX` tokens of 44 characters, with names, take less than a tenth.
FILE_BYTES_MAX: Final = 1 << 20
TOKENS_MAX: Final = 1_000  # to compare all takes 0.2 ms
# So many characters of base64 have 96 bits, which cannot be guessed over a network.
TOKEN_CHARS_MIN: Final = 16
# The parameter of a query (RFC 6750, section 2.3).
PARAMETER: Final = "access_token"
# A name, and a hash or a token.
_LINE: Final = re.compile(
    r"([A-Za-z0-9._-]{1,100}):(?:sha256:([0-9a-fA-F]{64})|([A-Za-z0-9._~+/-]{1,1000}=*))", re.ASCII
).fullmatch
_PARAMETER: Final = re.compile(rf"(?:^|&){PARAMETER}=([^&]*)")
# The value of `Authorization`. The name of the scheme has no case (RFC 9110, section 11.1).
_BEARER: Final = re.compile(r"bearer +(\S+)", re.ASCII | re.IGNORECASE).fullmatch


class Token(NamedTuple):
    """A token, by its name and its hash."""

    name: str
    digest: bytes


class Tokens(NamedTuple):
    """The tokens of a file."""

    known: tuple[Token, ...]

    def name_of(self, text: str) -> str | None:
        """Return the name of a token; None for one that is unknown.

        All are compared, also after one that is equal: the time does not tell which one it was. Of two
        names for one token, the last counts.
        """
        digest, found = _digest(text), None
        for each in self.known:
            if compare_digest(each.digest, digest):
                found = each.name
        return found


def parse_tokens(text: str) -> Tokens:
    """Parse the text of a file. Raises ValueError, which names the line and not what is in it.

    The text of the error completes a sentence that begins with the file. A file without a token is an
    error: it would lock all clients out.
    """
    found = tuple(_tokens(text))
    if not found:
        raise ValueError("has no token: write one a line, as name:token")
    if len(found) > TOKENS_MAX:
        raise ValueError(f"has {len(found)} tokens, and may have {TOKENS_MAX}")
    return Tokens(found)


def _tokens(text: str) -> Iterator[Token]:
    """Yield the tokens of a file. Empty lines and those that begin with `#` are skipped."""
    for number, line in enumerate(text.splitlines(), 1):
        if (entry := line.strip()) and not entry.startswith("#"):
            yield _token(number, entry)


def _token(number: int, entry: str) -> Token:
    """Return the token of a line. Raises ValueError, with the number of the line and not its text."""
    found = _LINE(entry)
    if found is None:
        raise ValueError(f"has no name:token or name:sha256:hash in line {number}")
    name, digest, token = found.groups()
    if token is not None and len(token) < TOKEN_CHARS_MIN:
        raise ValueError(f"has a token of less than {TOKEN_CHARS_MIN} characters in line {number}")
    return Token(name, bytes.fromhex(digest) if digest else _digest(token))


def presented(headers: Mapping[str, str], query: str) -> str | None:
    """Return the token that a request has, empty if it is of another kind; None if it has none.

    It is in the field `Authorization`, or in the query: a browser cannot give a WebSocket header fields.

    The header field wins where there are both. Handlers never see the parameter: see `without_token`.
    """
    field = headers.get("authorization")
    if field is not None:
        found = _BEARER(field.strip())
        return found[1] if found else ""
    parameter = _PARAMETER.search(query) if PARAMETER in query else None
    return None if parameter is None else unquote(parameter[1])


def without_token(query: str) -> str:
    """Return a query without the token in it: what handlers and the log do not see, they cannot repeat."""
    return _PARAMETER.sub("", query) if PARAMETER in query else query


def _digest(token: str) -> bytes:
    """Return the SHA-256 of a token. Any text has one, also with bytes that are no UTF-8."""
    return sha256(token.encode("utf-8", "surrogateescape")).digest()

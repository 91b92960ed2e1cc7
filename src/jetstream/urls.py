"""URLs as people are shown them: without what may be secret."""

from __future__ import annotations

import re
from typing import Final

_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S*")


def shown(url: str) -> str:
    """Return a URL, or a host, without user, password, query and fragment.

    A password may hold any character, also in what is no URL. So all up to the last `@` is left out, and
    nothing is shown of what may be either a password with a `?` in it or a query with an `@`.
    """
    scheme, separator, rest = url.rpartition("://") if url.count("://") == 1 else ("", "", url)
    before, *query = re.split(r"[?#]", rest, maxsplit=1)
    if query and "@" in query[0]:
        return f"{scheme}{separator}…"
    return f"{scheme}{separator}{before.rpartition('@')[2]}"


def without_secrets(text: str) -> str:
    """Return a sentence with each URL in it as it may be shown."""
    return _URL.sub(lambda found: shown(found[0]), text)

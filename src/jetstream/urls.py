"""URLs as people are shown them: without what may be secret."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

_SECRET: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)(\S*)")


def shown(url: str) -> str:
    """Return a URL, or a host, without user, password, query and fragment.

    All up to the last `@` is left out where that is not before the path: a password may hold any character.
    """
    scheme, separator, rest = url.rpartition("://") if url.count("://") == 1 else ("", "", url)
    try:
        parts = urlsplit(f"{scheme or 'ws'}://{rest}")
        readable = bool(parts.hostname) and (parts.port is None or parts.port >= 0)
    except ValueError:
        readable = False
    if readable and "@" not in parts.path + parts.query + parts.fragment:
        rest = parts.netloc.rpartition("@")[2] + parts.path
    else:
        rest = re.split(r"[?#]", rest.rpartition("@")[2])[0]
    return f"{scheme}{separator}{rest}"


def without_secrets(text: str) -> str:
    """Return a sentence with each URL in it as it may be shown."""
    return _SECRET.sub(lambda found: shown(found[0]), text)

"""URLs as they may be shown in logs and pages: without what may be secret.

The URLs of upstreams and of databases may have a password in them. Whatever is logged, shown on a page
or raised as an error goes through here. The result is for people, and no address to connect to.
"""

from __future__ import annotations

import re
from typing import Final

# A scheme as of RFC 3986, section 3.1, and everything up to the next space.
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S*")


def shown(url: str) -> str:
    """Return a URL, or a host, without user, password, query and fragment.

    A password may hold any character, even in what is no valid URL. So everything up to the last `@` is
    removed. If an `@` follows a `?` or a `#`, those may be part of a password or of a query: then only the
    scheme is left.
    """
    scheme, separator, rest = url.rpartition("://") if url.count("://") == 1 else ("", "", url)
    before, *query = re.split(r"[?#]", rest, maxsplit=1)
    if query and "@" in query[0]:
        return f"{scheme}{separator}…"
    return f"{scheme}{separator}{before.rpartition('@')[2]}"


def without_secrets(text: str) -> str:
    """Return a text with each URL in it as `shown` returns it: for error messages of libraries."""
    return _URL.sub(lambda found: shown(found[0]), text)

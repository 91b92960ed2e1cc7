"""The files of the page at `/`: its HTML, its style, its scripts, and the icon.

They are served as they are, below `/page/`: there is no build step, and nothing of another site is loaded. A
browser asks for each of them again with the ETag that it has, so a page never runs with the scripts of
another version.

The HTML is not below `/page/`: `front_page` fills it in for each request. Each response has a
Content-Security-Policy that forbids scripts of other origins: the text of events is untrusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

from jetstream.steps import Steps
from jetstream.web.http import READ, Request, Response, other_method

# The tree of these files in `server.Routes`.
PREFIX: Final = "/page/"
ICON: Final = "favicon.svg"
TEMPLATE: Final = "index.html"
_FOLDER: Final = Path(__file__).with_name("page")
# What is served, by the end of its name. Other files of the folder are not.
_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# What the page may do: run its own scripts, and connect to its own server. Events are written by anybody, so
# text that becomes HTML (`innerHTML`) is an error.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS: Final = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class _File(NamedTuple):
    """A file: its bytes, what they are, and their ETag."""

    data: bytes
    content_type: str
    etag: str


class PageFiles:
    """The files of a folder. They are read on the first request."""

    def __init__(self, folder: Path = _FOLDER) -> None:
        # It is read once; a change needs a restart of the server.
        self._folder = folder

    @cached_property
    def _files(self) -> Mapping[str, _File]:
        """Return the files by their names. They are read on the first request."""
        paths = (path for path in self._folder.iterdir() if path.suffix in _TYPES)
        return {path.name: _file(path.read_bytes(), _TYPES[path.suffix]) for path in paths}

    @cached_property
    def template(self) -> str:
        """The HTML of the page, in which names in braces stand for what a server fills in."""
        return (self._folder / TEMPLATE).read_text(encoding="utf-8")

    def answer(self, request: Request, _connection: object) -> Steps[Response]:
        """Answer a request below `/page/`.

        405 for another method than GET and HEAD, 404 for a name that there is not. A name is never a path:
        files are looked up in a table.
        """
        yield from ()
        refused = other_method(request, READ)
        if refused is not None:
            return refused
        file = self._files.get(request.route.removeprefix(PREFIX))
        if file is None:
            return Response.sentence(404, f"there is no such file: the page is at {request.base}/")
        return _served(request, file)

    def icon(self, request: Request) -> Response:
        """Return the icon: browsers ask for `/favicon.ico` when they show a page that names none."""
        return _served(request, self._files[ICON])


def html(request: Request, text: str) -> Response:
    """Return a page of HTML with what it may do, or 304 to a browser that has it.

    It depends on `Accept`: other clients get text at the same path.
    """
    response = _served(request, _file(text.encode(), "text/html; charset=utf-8"))
    return response._replace(headers={**(response.headers or {}), "Vary": "Accept"})


def _file(data: bytes, content_type: str) -> _File:
    """Return a file with its ETag, which is a hash of its bytes."""
    return _File(data, content_type, f'"{sha256(data).hexdigest()[:32]}"')


def _served(request: Request, file: _File) -> Response:
    """Return a file, or 304 to a browser that has its bytes (RFC 9110, section 13.1.2)."""
    status = 304 if request.has(file.etag) else 200
    return Response(status, file.data, file.content_type, {"ETag": file.etag, **_HEADERS})

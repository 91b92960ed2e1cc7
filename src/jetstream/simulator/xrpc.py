"""The sync endpoints beside the firehose: what repositories there are, and what is in them.

Source: the lexicons of `com.atproto.sync`; the reference PDS for the words of its errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final

from aiohttp import web

from jetstream.simulator.mishaps import Mishaps
from jetstream.simulator.stream import Stream
from jetstream.simulator.world import Person

_PAGE_DEFAULT: Final = 500
_PAGE_MAX: Final = 1000
_PIECE_BYTES: Final = 65_536
_PREFIX: Final = "/xrpc/com.atproto.sync."
_GONE: Final = {
    "takendown": "RepoTakendown",
    "suspended": "RepoSuspended",
    "deactivated": "RepoDeactivated",
    "deleted": "RepoNotFound",
}


class Refusal(Exception):
    """An answer in the negative: a status, the error's name, and a sentence."""

    def __init__(self, status: int, name: str, message: str) -> None:
        self.status, self.name, self.message = status, name, message
        super().__init__(message)


@web.middleware
async def refuse(request: web.Request, handler: Callable[..., object]) -> web.StreamResponse:
    """Turn a refusal into the JSON that XRPC has for it."""
    try:
        return await handler(request)  # type: ignore[misc, no-any-return]
    except Refusal as refusal:
        body = {"error": refusal.name, "message": refusal.message}
        return web.json_response(body, status=refusal.status)


class Repositories:
    """Answers for the repositories of a world."""

    def __init__(self, stream: Stream, mishaps: Mishaps) -> None:
        self._stream = stream
        self._people = stream.world.people
        self._mishaps = mishaps

    def routes(self) -> list[web.RouteDef]:
        """List what to serve, and where."""
        return [
            web.get(_PREFIX + "getRepo", self._get_repo),
            web.get("/moved" + _PREFIX + "getRepo", self._get_moved_repo),
            web.get(_PREFIX + "listRepos", self._list_repos),
            web.get(_PREFIX + "listReposByCollection", self._list_repos_by_collection),
            web.get(_PREFIX + "getRepoStatus", self._get_repo_status),
            web.get(_PREFIX + "getLatestCommit", self._get_latest_commit),
            web.get(_PREFIX + "listHosts", self._list_hosts),
        ]

    async def _get_repo(self, request: web.Request) -> web.StreamResponse:
        did = request.query.get("did", "")
        if self._mishaps.happens("repo_fails", did=did):
            raise Refusal(500, "InternalServerError", "injected by the simulator")
        if self._mishaps.happens("repo_redirects", did=did):
            raise web.HTTPFound(f"/moved{request.path_qs}")
        return await self._get_moved_repo(request)

    async def _get_moved_repo(self, request: web.Request) -> web.StreamResponse:
        car = self._hosted(request).repo.export()
        response = web.StreamResponse(headers={"Content-Type": "application/vnd.ipld.car"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        for start in range(0, len(car), _PIECE_BYTES):
            await response.write(car[start : start + _PIECE_BYTES])
        await response.write_eof()
        return response

    async def _list_repos(self, request: web.Request) -> web.Response:
        repos = ((did, person) for did, person in self._people.items() if person.repo.head is not None)
        return _page(request, repos, _repo_entry)

    async def _list_repos_by_collection(self, request: web.Request) -> web.Response:
        collection = request.query.get("collection", "")
        if not collection:
            raise Refusal(400, "InvalidRequest", "collection: is required")
        prefix = f"{collection}/"
        repos = (
            (did, person)
            for did, person in self._people.items()
            if any(path.startswith(prefix) for path in person.paths)
        )
        return _page(request, repos, lambda did, _: {"did": did})

    async def _get_repo_status(self, request: web.Request) -> web.Response:
        person = self._known(request)
        body: dict[str, object] = {"did": person.did, "active": person.active}
        if person.status is not None:
            body["status"] = person.status
        if person.active:
            body["rev"] = person.repo.rev
        return web.json_response(body)

    async def _get_latest_commit(self, request: web.Request) -> web.Response:
        person = self._hosted(request)
        assert person.repo.head is not None, "who is hosted has a commit"
        return web.json_response({"cid": str(person.repo.head.cid), "rev": person.repo.rev})

    async def _list_hosts(self, request: web.Request) -> web.Response:
        host = {
            "hostname": request.host,
            "seq": self._stream.seq,
            "accountCount": len(self._stream.world.present),
            "status": "active",
        }
        return web.json_response({"hosts": [host]})

    def _known(self, request: web.Request) -> Person:
        did = request.query.get("did", "")
        person = self._people.get(did)
        if person is None:
            raise Refusal(400, "RepoNotFound", f"Could not find repo for DID: {did}")
        return person

    def _hosted(self, request: web.Request) -> Person:
        person = self._known(request)
        if not person.active:
            name = _GONE.get(person.status or "", "RepoNotFound")
            raise Refusal(400, name, f"Repo is {person.status}: {person.did}")
        return person


def _repo_entry(did: str, person: Person) -> dict[str, object]:
    assert person.repo.head is not None, "only repositories with a commit are listed"
    head = str(person.repo.head.cid)
    entry: dict[str, object] = {"did": did, "head": head, "rev": person.repo.rev, "active": person.active}
    return entry if person.status is None else entry | {"status": person.status}


def _page(
    request: web.Request,
    repos: Iterable[tuple[str, Person]],
    entry: Callable[[str, Person], dict[str, object]],
) -> web.Response:
    """Answer with one page of a list. The cursor, opaque to clients, is how many entries came before."""
    limit = _number(request, "limit", _PAGE_DEFAULT)
    start = _number(request, "cursor", 0)
    if not 1 <= limit <= _PAGE_MAX:
        raise Refusal(400, "InvalidRequest", f"limit: must be from 1 to {_PAGE_MAX}, not {limit}")
    page = [entry(did, person) for did, person in islice(repos, start, start + limit + 1)]
    body: dict[str, object] = {"repos": page[:limit]}
    return web.json_response(body if len(page) <= limit else body | {"cursor": str(start + limit)})


def _number(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        raise Refusal(400, "InvalidRequest", f"{name}: {text[:100]!r} is not a number")
    return int(text)

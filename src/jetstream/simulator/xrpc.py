"""The sync endpoints besides the firehose: the list of repositories, and their contents.

Source: the lexicons of `com.atproto.sync`; the reference PDS for the texts of errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Final, NamedTuple, Protocol, TypeVar

from aiohttp import web

from jetstream.simulator.request_faults import RequestFaults

Json = dict[str, object]
_T = TypeVar("_T")
_PAGE_DEFAULT: Final = 500
_HOSTS_DEFAULT: Final = 200
_PAGE_MAX: Final = 1000
_PIECE_BYTES: Final = 65_536
_PREFIX: Final = "/xrpc/com.atproto.sync."
# The error for each status of an account that is not active.
_INACTIVE_ERRORS: Final = {
    "takendown": "RepoTakendown",
    "suspended": "RepoSuspended",
    "deactivated": "RepoDeactivated",
    "deleted": "RepoNotFound",
}


class XrpcError(Exception):
    """An error response: an HTTP status, the name of the error, and a sentence."""

    def __init__(self, status: int, name: str, message: str) -> None:
        self.status, self.name, self.message = status, name, message
        super().__init__(message)


@web.middleware
async def xrpc_errors(request: web.Request, handler: Callable[..., object]) -> web.StreamResponse:
    """Respond to a request that raises an XrpcError with the JSON of that error."""
    try:
        return await handler(request)  # type: ignore[misc, no-any-return]
    except XrpcError as error:
        body = {"error": error.name, "message": error.message}
        return web.json_response(body, status=error.status)


class HostedRepo(NamedTuple):
    """What a host says of a repository."""

    did: str
    active: bool
    status: str | None
    rev: str | None  # None: it has no commit
    head: str | None  # the CID of its commit


class Repos(Protocol):
    """The repositories of a host."""

    async def all(self) -> Iterable[HostedRepo]:
        """Return all of them, always in the same order; new ones come last."""
        ...

    async def find(self, did: str) -> HostedRepo | None:
        """Return one of them, None if the host does not know it."""
        ...

    async def with_collection(self, collection: str) -> Iterable[HostedRepo]:
        """Return those that have records of a collection."""
        ...

    async def export(self, did: str) -> bytes:
        """Return a repository as a CAR file. `find` has returned it, with a commit."""
        ...

    async def hosts(self, own: str) -> Sequence[Json]:
        """Return the hosts that the firehose comes from; `own` is the name and port of this one."""
        ...


class Repositories:
    """Serves the repositories of a host."""

    def __init__(self, repos: Repos, faults: RequestFaults) -> None:
        self._repos = repos
        self._faults = faults

    def routes(self) -> list[web.RouteDef]:
        """Return the routes to serve."""
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
        if self._faults.occurs("repo_fails", did=did):
            raise XrpcError(500, "InternalServerError", "injected by the simulator")
        if self._faults.occurs("repo_redirects", did=did):
            raise web.HTTPFound(f"/moved{request.path_qs}")
        return await self._get_moved_repo(request)

    async def _get_moved_repo(self, request: web.Request) -> web.StreamResponse:
        car = await self._repos.export((await self._active(request)).did)
        response = web.StreamResponse(headers={"Content-Type": "application/vnd.ipld.car"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        for start in range(0, len(car), _PIECE_BYTES):
            await response.write(car[start : start + _PIECE_BYTES])
        await response.write_eof()
        return response

    async def _list_repos(self, request: web.Request) -> web.Response:
        repos = (repo for repo in await self._repos.all() if repo.head is not None)
        return _page(request, "repos", repos, _repo_entry)

    async def _list_repos_by_collection(self, request: web.Request) -> web.Response:
        collection = request.query.get("collection", "")
        if not collection:
            raise XrpcError(400, "InvalidRequest", "collection: is required")
        repos = await self._repos.with_collection(collection)
        return _page(request, "repos", repos, lambda repo: {"did": repo.did})

    async def _get_repo_status(self, request: web.Request) -> web.Response:
        repo = await self._known(request)
        body: Json = {"did": repo.did, "active": repo.active}
        if repo.status is not None:
            body["status"] = repo.status
        if repo.active:
            body["rev"] = repo.rev
        return web.json_response(body)

    async def _get_latest_commit(self, request: web.Request) -> web.Response:
        repo = await self._active(request)
        return web.json_response({"cid": repo.head, "rev": repo.rev})

    async def _list_hosts(self, request: web.Request) -> web.Response:
        hosts = await self._repos.hosts(request.host)
        return _page(request, "hosts", hosts, lambda host: host, _HOSTS_DEFAULT)

    async def _known(self, request: web.Request) -> HostedRepo:
        did = request.query.get("did", "")
        repo = await self._repos.find(did)
        if repo is None:
            raise XrpcError(400, "RepoNotFound", f"Could not find repo for DID: {did}")
        return repo

    async def _active(self, request: web.Request) -> HostedRepo:
        """Return a repository that is active and has a commit."""
        repo = await self._known(request)
        if not repo.active:
            name = _INACTIVE_ERRORS.get(repo.status or "", "RepoNotFound")
            raise XrpcError(400, name, f"Repo is {repo.status}: {repo.did}")
        if repo.head is None:
            raise XrpcError(400, "RepoNotFound", f"No commit is known of {repo.did}")
        return repo


def _repo_entry(repo: HostedRepo) -> Json:
    entry: Json = {"did": repo.did, "head": repo.head, "rev": repo.rev, "active": repo.active}
    return entry if repo.status is None else entry | {"status": repo.status}


def _page(
    request: web.Request,
    name: str,
    items: Iterable[_T],
    entry: Callable[[_T], Json],
    default: int = _PAGE_DEFAULT,
) -> web.Response:
    """Return one page of a list. The cursor, opaque to clients, is the number of entries before the page."""
    limit = _number(request, "limit", default)
    start = _number(request, "cursor", 0)
    if not 1 <= limit <= _PAGE_MAX:
        raise XrpcError(400, "InvalidRequest", f"limit: must be from 1 to {_PAGE_MAX}, not {limit}")
    page = [entry(item) for item in islice(items, start, start + limit + 1)]
    body: Json = {name: page[:limit]}
    return web.json_response(body if len(page) <= limit else body | {"cursor": str(start + limit)})


def _number(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        raise XrpcError(400, "InvalidRequest", f"{name}: {text[:100]!r} is not a number")
    return int(text)

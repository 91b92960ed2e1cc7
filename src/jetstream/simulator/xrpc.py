"""The sync endpoints besides the firehose: the list of repositories, and their contents.

Source: the lexicons of `com.atproto.sync`; the reference PDS for the texts of errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final

from aiohttp import web

from jetstream.simulator.request_faults import RequestFaults
from jetstream.simulator.stream import Stream
from jetstream.simulator.world import SimulatedAccount

_PAGE_DEFAULT: Final = 500
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


class Repositories:
    """Serves the repositories of a world."""

    def __init__(self, stream: Stream, faults: RequestFaults) -> None:
        self._stream = stream
        self._accounts = stream.world.all_accounts  # by DID, including deleted ones
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
        car = self._active_account(request).repo.export()
        response = web.StreamResponse(headers={"Content-Type": "application/vnd.ipld.car"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        for start in range(0, len(car), _PIECE_BYTES):
            await response.write(car[start : start + _PIECE_BYTES])
        await response.write_eof()
        return response

    async def _list_repos(self, request: web.Request) -> web.Response:
        repos = ((did, account) for did, account in self._accounts.items() if account.repo.head is not None)
        return _page(request, repos, _repo_entry)

    async def _list_repos_by_collection(self, request: web.Request) -> web.Response:
        collection = request.query.get("collection", "")
        if not collection:
            raise XrpcError(400, "InvalidRequest", "collection: is required")
        prefix = f"{collection}/"
        repos = (
            (did, account)
            for did, account in self._accounts.items()
            if any(path.startswith(prefix) for path in account.paths)
        )
        return _page(request, repos, lambda did, _: {"did": did})

    async def _get_repo_status(self, request: web.Request) -> web.Response:
        account = self._known_account(request)
        body: dict[str, object] = {"did": account.did, "active": account.active}
        if account.status is not None:
            body["status"] = account.status
        if account.active:
            body["rev"] = account.repo.rev
        return web.json_response(body)

    async def _get_latest_commit(self, request: web.Request) -> web.Response:
        account = self._active_account(request)
        assert account.repo.head is not None, "an active account has a commit"
        return web.json_response({"cid": str(account.repo.head.cid), "rev": account.repo.rev})

    async def _list_hosts(self, request: web.Request) -> web.Response:
        host = {
            "hostname": request.host,
            "seq": self._stream.seq,
            "accountCount": len(self._stream.world.accounts),
            "status": "active",
        }
        return web.json_response({"hosts": [host]})

    def _known_account(self, request: web.Request) -> SimulatedAccount:
        did = request.query.get("did", "")
        account = self._accounts.get(did)
        if account is None:
            raise XrpcError(400, "RepoNotFound", f"Could not find repo for DID: {did}")
        return account

    def _active_account(self, request: web.Request) -> SimulatedAccount:
        account = self._known_account(request)
        if not account.active:
            name = _INACTIVE_ERRORS.get(account.status or "", "RepoNotFound")
            raise XrpcError(400, name, f"Repo is {account.status}: {account.did}")
        return account


def _repo_entry(did: str, account: SimulatedAccount) -> dict[str, object]:
    assert account.repo.head is not None, "only repositories with a commit are listed"
    head = str(account.repo.head.cid)
    entry: dict[str, object] = {"did": did, "head": head, "rev": account.repo.rev, "active": account.active}
    return entry if account.status is None else entry | {"status": account.status}


def _page(
    request: web.Request,
    repos: Iterable[tuple[str, SimulatedAccount]],
    entry: Callable[[str, SimulatedAccount], dict[str, object]],
) -> web.Response:
    """Return one page of a list. The cursor, opaque to clients, is the number of entries before the page."""
    limit = _number(request, "limit", _PAGE_DEFAULT)
    start = _number(request, "cursor", 0)
    if not 1 <= limit <= _PAGE_MAX:
        raise XrpcError(400, "InvalidRequest", f"limit: must be from 1 to {_PAGE_MAX}, not {limit}")
    page = [entry(did, account) for did, account in islice(repos, start, start + limit + 1)]
    body: dict[str, object] = {"repos": page[:limit]}
    return web.json_response(body if len(page) <= limit else body | {"cursor": str(start + limit)})


def _number(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        raise XrpcError(400, "InvalidRequest", f"{name}: {text[:100]!r} is not a number")
    return int(text)

"""What an edge asks the supervisor, for the requests of its clients."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

import pytest

from jetstream.steps import finish
from jetstream.supervisor.covering import Covering
from jetstream.web.connection import Connection, Handler
from jetstream.web.http import Request, Response
from jetstream.web.server import Routes

NONE: Mapping[str, str] = MappingProxyType({})


class Supervisor:
    """Keeps what it is asked, and answers once it may."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Mapping[str, Any]]] = []
        self.may = asyncio.Event()

    async def ask(self, kind: str, fields: Mapping[str, Any], body: bytes = b"") -> Response:
        self.asked.append((kind, fields))
        await self.may.wait()
        return Response.sentence(200, f"answer {len(self.asked)}")


@pytest.fixture
def supervisor() -> Supervisor:
    return Supervisor()


def page(_request: Request) -> Response:
    return Response.sentence(200, "of this process")


async def nothing(_body: bytes) -> Response:
    raise AssertionError


def handler(supervisor: Supervisor, path: str) -> Handler:
    pages = dict.fromkeys(("/metrics", "/status.json", "/ready"), page)
    return Covering(supervisor.ask, nothing).routes(Routes(pages)).upgrades[path]


async def asked(handler: Handler, headers: Mapping[str, str] = NONE) -> bytes:
    """Return what a client is answered."""
    request = Request("GET", "/", "", 1, dict(headers))
    answer = finish(handler(request, cast(Connection, None)))
    assert answer is not None
    response = answer if isinstance(answer, Response) else await answer
    assert response is not None
    return response.body


async def test_clients_who_ask_for_the_same_at_once_are_one_question(supervisor: Supervisor) -> None:
    status = handler(supervisor, "/status.json")
    clients = [asyncio.create_task(asked(status)) for _ in range(100)]
    await asyncio.sleep(0)
    clients[0].cancel()  # it has gone; the others are answered
    await asyncio.sleep(0)
    supervisor.may.set()
    answers = await asyncio.gather(*clients[1:])
    assert set(answers) == {b"answer 1\n"}
    assert len(supervisor.asked) == 1
    assert await asked(status) == b"answer 2\n"


@pytest.mark.parametrize(
    ("accept", "passed"),
    [
        ("text/plain", ""),
        ("application/openmetrics-text; version=0.0.1", "application/openmetrics-text; version=1.0.0"),
        ("application/openmetrics-text; version=x.y", "application/openmetrics-text; version=1.0.0"),
        ("x" * 8_000, ""),
    ],
)
async def test_of_a_clients_accept_only_the_format_is_passed_on(
    accept: str, passed: str, supervisor: Supervisor
) -> None:
    supervisor.may.set()
    await asked(handler(supervisor, "/metrics"), {"accept": accept})
    assert supervisor.asked == [("metrics", {"accept": passed})]

"""Clients that left keep no memory; `tests/soak` has twenty thousand of them."""

from __future__ import annotations

import asyncio
import gc

import pytest
from tests.builders import commit, like
from tests.relay import Relay, numbered
from tests.serving import Start, published, until
from tests.visitors import KINDS, visit

from jetstream.delivery.subscriber import Subscriber

COUNT = 20


def left_in_memory() -> int:
    return sum(isinstance(each, Subscriber | asyncio.Task) for each in gc.get_objects())


@pytest.mark.usefixtures("only_new_objects")
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_clients_that_left_keep_no_objects(relay: Relay, start: Start, kind: str, reset: bool) -> None:
    relay.publish(numbered([commit(seq, [like(seq)]) for seq in range(1, 31)]))
    service = await start(upstream_cursor=0)
    await published(service, 30)
    await visit(service.port, kind, 0, reset=reset)
    gc.collect()
    gc.disable()  # what stays until the collector comes stays for long: it hardly ever looks at what is old
    try:
        before = left_in_memory()
        await asyncio.gather(*(visit(service.port, kind, n, reset=reset) for n in range(1, COUNT)))
        await until(lambda: left_in_memory() <= before)
        assert not len(service.delivery)
    finally:
        gc.enable()

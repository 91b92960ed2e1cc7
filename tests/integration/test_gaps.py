"""`/gaps` of a running server."""

from __future__ import annotations

import asyncio
import json

from tests.serving import Start, get

from jetstream.eventlog import Changes, Gap
from jetstream.limits import Limits, WebLimits
from jetstream.model.batch import Batch


async def test_gaps_are_served_from_the_log(start: Start) -> None:
    service = await start(limits=Limits(web=WebLimits(gaps_per_page=2)))
    assert await get(service.port, "/gaps") == (200, "")
    gaps = [Gap(time_us, "did:plc:a", "3l3qo2vutsw2b", "3l3qo2vuowo2b", "sync") for time_us in (5, 6, 7)]
    await service.log.append(Batch.of((), ()), Changes(service.log.cursors, gaps=gaps))

    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(b"GET /gaps HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert b'\r\nLink: </gaps?since=7>; rel="next"' in head
    assert [json.loads(line)["time_us"] for line in body.splitlines()] == [5, 6]

    status, text = await get(service.port, "/gaps?since=7")
    assert (status, [json.loads(line)["time_us"] for line in text.splitlines()]) == (200, [7])
    status, text = await get(service.port, "/gaps?since=soon")
    assert (status, text.startswith("since: 'soon' is not a time")) == (400, True)

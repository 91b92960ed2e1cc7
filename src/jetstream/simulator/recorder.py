"""Record a real firehose: its frames, and the DID documents of all accounts in them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import aiohttp
import structlog

from jetstream.simulator import recording
from jetstream.simulator.recording import RecordingError

DIRECTORY: Final = "https://plc.directory"
_MESSAGE_BYTES_MAX: Final = 32 << 20  # well above the limit of the protocol
_SILENCE_S: Final = 60.0  # without a frame, after which the recording ends
_REQUESTS_MAX: Final = 8  # to the directory at the same time: it is a shared service
_RESPONSE_S: Final = 30.0

logger = structlog.get_logger(__name__)


async def record_firehose(
    url: str, path: Path, count: int, cursor: int | None, directory: str | None
) -> None:
    """Write `count` frames of a firehose to a new recording, and DID documents beside it.

    `directory` is where the documents of `did:plc` accounts are requested; None: no documents. Raises
    RecordingError if the firehose cannot be reached, ends or is silent for too long; the file then has the
    frames received so far.
    """
    timeout = aiohttp.ClientTimeout(total=_RESPONSE_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        with recording.writing(path) as add:
            await _copy(session, url, count, cursor, add)
        if directory is not None:
            dids = recording.dids_of(recording.read(path))
            recording.write_documents(path, await _request_documents(session, directory, dids))


async def _copy(
    session: aiohttp.ClientSession, url: str, count: int, cursor: int | None, add: recording.Add
) -> None:
    params = {} if cursor is None else {"cursor": str(cursor)}
    done = 0
    try:
        async with session.ws_connect(url, params=params, max_msg_size=_MESSAGE_BYTES_MAX) as ws:
            while done < count:
                message = await ws.receive(_SILENCE_S)
                if message.type is not aiohttp.WSMsgType.BINARY:
                    raise RecordingError(f"{url} ended after {done} of {count} frames: {message.data}")
                add(message.data)
                done += 1
    except (aiohttp.ClientError, TimeoutError) as error:
        problem = str(error) or f"silent for {_SILENCE_S:g} s"
        raise RecordingError(f"{url}: {problem}, after {done} of {count} frames") from error


async def _request_documents(
    session: aiohttp.ClientSession, directory: str, dids: Iterable[str]
) -> dict[str, object]:
    """Return the documents of DIDs. Those that cannot be read are left out, and a warning is logged."""
    limit = asyncio.Semaphore(_REQUESTS_MAX)

    async def request(did: str) -> tuple[str, object]:
        async with limit, session.get(_document_url(directory, did)) as response:
            response.raise_for_status()
            return did, await response.json(content_type=None)

    results = await asyncio.gather(*map(request, sorted(dids)), return_exceptions=True)
    found = [result for result in results if isinstance(result, tuple)]
    if len(found) < len(results):
        logger.warning("some DID documents could not be read", missing=len(results) - len(found))
    return dict(found)


def _document_url(directory: str, did: str) -> str:
    if did.startswith("did:web:"):
        return f"https://{did.removeprefix('did:web:')}/.well-known/did.json"
    return f"{directory.rstrip('/')}/{did}"

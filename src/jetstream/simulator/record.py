"""Record a real firehose: its frames as they come, and the DID documents of everybody in them."""

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
_MESSAGE_BYTES_MAX: Final = 32 << 20  # well above what a relay may send
_SILENCE_S: Final = 60.0
_ASKED_AT_ONCE: Final = 8  # a directory that everybody shares is not to be pressed
_ANSWER_S: Final = 30.0
_log = structlog.get_logger(__name__)


async def record_firehose(
    url: str, path: Path, count: int, cursor: int | None, directory: str | None
) -> None:
    """Write `count` frames from `url` to a new recording, and the documents from `directory` beside it.

    Raises RecordingError where the firehose cannot be reached, ends or falls silent before that, with what
    came until then in the file.
    """
    timeout = aiohttp.ClientTimeout(total=_ANSWER_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        with recording.writing(path) as add:
            await _copy(session, url, count, cursor, add)
        if directory is not None:
            dids = recording.dids_of(recording.read(path))
            recording.write_documents(path, await _ask(session, directory, dids))


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


async def _ask(session: aiohttp.ClientSession, directory: str, dids: Iterable[str]) -> dict[str, object]:
    """Collect the documents of DIDs; one that cannot be had is left out, and told of."""
    gate = asyncio.Semaphore(_ASKED_AT_ONCE)

    async def ask(did: str) -> tuple[str, object]:
        async with gate, session.get(_document_url(directory, did)) as answer:
            answer.raise_for_status()
            return did, await answer.json(content_type=None)

    answers = await asyncio.gather(*map(ask, sorted(dids)), return_exceptions=True)
    found = [answer for answer in answers if isinstance(answer, tuple)]
    if len(found) < len(answers):
        _log.warning("some DID documents could not be had", missing=len(answers) - len(found))
    return dict(found)


def _document_url(directory: str, did: str) -> str:
    if did.startswith("did:web:"):
        return f"https://{did.removeprefix('did:web:')}/.well-known/did.json"
    return f"{directory.rstrip('/')}/{did}"

"""Count likes, and go on where it stopped when it is started again.

    python examples/resume_where_it_stopped.py FILE [URL]

FILE holds the count and the cursor, and both are replaced at once: after a crash, no like is lost or
counted twice.
"""

import asyncio
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from jetstream.client import DEFAULT_URL, subscribe


@dataclass
class State:
    """How many likes there were before `cursor`, in unix microseconds."""

    likes: int = 0
    cursor: int | None = None


def load(path: Path) -> State:
    """Read the state, or begin."""
    return State(**json.loads(path.read_text())) if path.exists() else State()


def save(path: Path, state: State) -> None:
    """Replace the state: whoever reads it finds the old one or the new one, whole."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(asdict(state)))
    fresh.replace(path)


async def count_likes(path: Path, url: str = DEFAULT_URL) -> None:
    """Count new likes, for ever."""
    state = load(path)
    async for event in subscribe(url, collections=["app.bsky.feed.like"], cursor=state.cursor):
        if "record" in event.get("commit", {}):
            state.likes += 1
        state.cursor = event.time_us + 1
        save(path, state)
        print(state.likes, flush=True)


asyncio.run(count_likes(Path(sys.argv[1]), *sys.argv[2:]))

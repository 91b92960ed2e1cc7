"""Count likes, and resume after a restart.

    python examples/resume_where_it_stopped.py FILE [URL]

FILE has the count and the cursor. Both are replaced at once: after a crash, no like is lost or counted twice.
"""

import asyncio
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from jetstream.client import DEFAULT_URL, subscribe


@dataclass
class State:
    """The number of likes before `cursor`, which is in unix microseconds."""

    likes: int = 0
    cursor: int | None = None


def load(path: Path) -> State:
    """Read the state; without a file, start live."""
    return State(**json.loads(path.read_text())) if path.exists() else State()


def save(path: Path, state: State) -> None:
    """Replace the state atomically: a crash leaves the old file or the new one."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(asdict(state)))
    fresh.replace(path)


async def count_likes(path: Path, url: str = DEFAULT_URL) -> None:
    """Count new likes, without end."""
    state = load(path)
    async for event in subscribe(url, collections=["app.bsky.feed.like"], cursor=state.cursor):
        if "record" in event.get("commit", {}):
            state.likes += 1
        state.cursor = event.time_us + 1
        save(path, state)
        print(state.likes, flush=True)


asyncio.run(count_likes(Path(sys.argv[1]), *sys.argv[2:]))

"""Follows a directory's export until it is killed: `python -m tests.crash.key_importer URL DIRECTORY`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from jetstream.identity.cache import KeyCache
from jetstream.identity.fetch import Fetcher
from jetstream.identity.follower import ExportFollower
from jetstream.identity.store import KeyStore
from jetstream.limits import ExportLimits

LIMITS = ExportLimits(stage_ops=700, fold_ops=100, poll_s=0.01)


async def follow(url: str, directory: Path) -> None:
    async with KeyCache(KeyStore(directory)) as cache:
        await ExportFollower(url, Fetcher(1), cache, LIMITS).run()


if __name__ == "__main__":
    asyncio.run(follow(sys.argv[1], Path(sys.argv[2])))

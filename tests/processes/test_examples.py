"""The examples in Python, run as they are."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.builders import DID as ALICE
from tests.builders import commit, create, delete, identity
from tests.programs import program
from tests.relay import Relay, numbered
from tests.serving import Start

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
POST = "app.bsky.feed.post"


async def test_posts_are_printed(relay: Relay, start: Start) -> None:
    post = create(f"{POST}/one", {"text": "grüß dich\n"})
    relay.publish(numbered([identity(1), commit(2, [delete(post.path)]), commit(3, [post])]))
    service = await start(upstream_cursor=0)
    url = f"127.0.0.1:{service.port}?cursor=0"
    async with program(sys.executable, EXAMPLES / "print_posts.py", url) as printing:
        assert await printing.line() == f"at://{ALICE}/{POST}/one 'grüß dich\\n'\n"


async def test_a_count_resumes_where_it_stopped(relay: Relay, start: Start, tmp_path: Path) -> None:
    relay.publish(numbered([commit(1), commit(2)]))
    service = await start(upstream_cursor=0)
    arguments: list[str | Path] = [tmp_path / "likes.json", f"127.0.0.1:{service.port}?cursor=0"]
    example = EXAMPLES / "resume_where_it_stopped.py"
    async with program(sys.executable, example, *arguments) as counting:
        assert await counting.lines(2) == ["1\n", "2\n"]
    relay.publish(numbered([commit(3)]))
    async with program(sys.executable, example, *arguments) as counting:
        assert await counting.line() == "3\n"

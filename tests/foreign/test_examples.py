"""The JavaScript examples, run as they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.builders import DID, commit, create, delete, identity
from tests.foreign.clients import HERE, run
from tests.programs import program
from tests.relay import Relay, numbered
from tests.serving import Start, until

EXAMPLES = HERE.parents[1] / "examples"


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the locked libraries beside the examples that use them."""
    directory = tmp_path_factory.mktemp("node")
    for path in (*(HERE / "node").glob("package*.json"), *EXAMPLES.glob("*.mjs")):
        shutil.copy(path, directory)
    run("npm", "ci", "--no-audit", "--no-fund", cwd=directory)
    return directory


@pytest.mark.parametrize(
    ("example", "path", "wire"),
    [
        ("print_posts.mjs", "/subscribe", "classic"),
        ("print_posts.mjs", "/v1/subscribe", "classic"),
        ("print_posts_skyware.mjs", "/v1/subscribe", "classic"),
        ("print_posts_atcute.mjs", "", "classic"),
    ],
)
async def test_an_example_prints_posts(
    example: str, path: str, wire: str, programs: Path, relay: Relay, start: Start
) -> None:
    service = await start(upstream_cursor=0, wire=wire)
    url = f"ws://127.0.0.1:{service.port}{path}"
    async with program("node", "--experimental-websocket", example, url, cwd=programs) as printing:
        await until(lambda: len(service.delivery) == 1)
        post = create("app.bsky.feed.post/one", {"text": "grüß dich\n"})
        relay.publish(numbered([identity(1), commit(2, [delete(post.path)]), commit(3, [post])]))
        assert await printing.line() == f'{DID} "grüß dich\\n"\n'

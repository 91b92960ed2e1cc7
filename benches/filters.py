"""What filters cost: the CPU time for each event, the least of many runs. `python -m benches.filters`.

Three columns: a reader that catches up, when it is the first to judge these events; the same when another
content filter has judged them before; and a thousand readers at the tip with as many different filters.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from itertools import islice
from typing import Final
from urllib.parse import urlencode

from benches.frames import START_US, simulated
from tests.decoding import decode

from jetstream.delivery.feature_cache import FeatureCache
from jetstream.delivery.framing.websocket import WEBSOCKET
from jetstream.delivery.index import Groups
from jetstream.delivery.renderers.v1 import V1
from jetstream.delivery.subscriber import Encoding, Group, SubscriberOptions
from jetstream.limits import RuntimeLimits
from jetstream.model.batch import Batch
from jetstream.simulator.world import Population
from jetstream.steps import finish
from jetstream.web.http import Request
from jetstream.web.parameters import parse_request

EVENTS: Final = 4_000  # of a segment
RUNS: Final = 15
READERS: Final = 1_000
POST: Final = "app.bsky.feed.post"
ENCODING: Final = Encoding(V1, WEBSOCKET)

# The parameters of reader number `n`.
FILTERS: Final[dict[str, Callable[[int], dict[str, str]]]] = {
    "wantedCollections": lambda n: {"wantedCollections": f"{POST},com.example.n{n}"},
    "kinds=commit": lambda n: {"kinds": "commit", "excludeCollections": f"com.example.n{n}"},
    "kinds=identity": lambda n: {"kinds": "identity", "excludeDids": f"did:plc:{n}"},
    "operations=delete": lambda n: {"kinds": "commit", "operations": "delete", "excludeDids": f"did:plc:{n}"},
    "sample=1": lambda n: {"sample": "1", "excludeCollections": f"com.example.n{n}"},
    "lang=en": lambda n: {"lang": "en", "excludeCollections": f"com.example.n{n}"},
    "lang=en, wantedDids": lambda n: {"lang": "en", "wantedDids": f"did:plc:{n}"},
    "mentions": lambda n: {"mentions": f"did:plc:{n}"},
    "replyTo": lambda n: {"replyTo": f"did:plc:{n}"},
    "subject": lambda n: {"subject": f"did:plc:{n}"},
    "hasMedia": lambda n: {"hasMedia": "true", "excludeCollections": f"com.example.n{n}"},
    "text": lambda n: {"text": f"unheard{n} of"},
    "text, posts only": lambda n: {"text": f"unheard{n} of", "wantedCollections": POST},
}


def options(parameters: dict[str, str]) -> SubscriberOptions:
    """Read parameters as the server does."""
    return finish(parse_request(Request("GET", "/subscribe", urlencode(parameters), 1, {}), now_us=0)).options


def events() -> Batch:
    """Return the events of a simulated network."""
    made = (event for frame in simulated(Population(did_web=0.01), 1_000) for event in decode(frame).events)
    return Batch.of(list(islice(made, EVENTS)), range(START_US, START_US + EVENTS))


def least_us(work: Callable[[], object]) -> float:
    """Return the CPU time of one call in microseconds: the least of many."""
    times = []
    for _ in range(RUNS):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times) * 1e6


def replay(batch: Batch, asked: SubscriberOptions, features: FeatureCache) -> None:
    """Judge events as for a reader that catches up."""
    chosen = asked.wanted.select(batch, 0, len(batch))
    if asked.content is not None:
        features.select(asked.content, batch, chosen)


def at_the_tip(batch: Batch, asked: Callable[[int], dict[str, str]]) -> float:
    """Return the time for one event and all readers at the tip, when the events are new."""
    earlier = Batch.of([batch.event(i) for i in range(len(batch))], batch.times)

    def groups() -> Groups:
        made = Groups(10_000, finish, FeatureCache(1 << 30))
        for n in range(READERS):
            finish(made.index(Group(ENCODING, options(asked(n)))))
        made.wanted(earlier, 0, len(earlier))  # the collections are known then, as in a running server
        return made

    waiting = [groups() for _ in range(RUNS)]
    return least_us(lambda: waiting.pop().wanted(batch, 0, len(batch))) / len(batch)


def main() -> None:
    """Print a table."""
    gc.set_threshold(*RuntimeLimits().gc_thresholds)  # as the server does
    batch = events()
    print(f"| filter | first | again | {READERS:,} at the tip |\n|---|---|---|---|")
    for name, asked in FILTERS.items():
        one, kept = options(asked(0)), FeatureCache(1 << 30)
        replay(batch, one, kept)
        first = least_us(lambda: replay(batch, one, FeatureCache(1 << 30))) / len(batch)  # noqa: B023
        again = least_us(lambda: replay(batch, one, kept)) / len(batch)  # noqa: B023
        print(f"| `{name}` | {first:.2f} | {again:.2f} | {at_the_tip(batch, asked):.2f} |", flush=True)


if __name__ == "__main__":
    main()

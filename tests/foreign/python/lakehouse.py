"""Prints the `seq` and the kind of live events from the oldest one on, with `jetstream-lakehouse` 0.1.0.

lakehouse.py ORIGIN
"""

from __future__ import annotations

import sys

from jetstream_lakehouse import Client, Config  # type: ignore[import-not-found]

for event in Client(Config(endpoint=sys.argv[1])).live(0):
    print(event.seq, event.kind, flush=True)

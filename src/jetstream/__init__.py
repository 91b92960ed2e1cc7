"""Jetstream: the ATProto firehose as light, friendly JSON over WebSocket.

Read the code in the order in which data flows: `model` defines events, `upstream` decodes the firehose into
events, `ingest` stamps and stores them, `eventlog` keeps them, and `delivery` sends them to subscribers,
which connect through `web`. `app` starts and stops these parts, and `cli` starts `app`.
"""

__version__ = "0.1.0"  # the build reads it here: asking `importlib.metadata` takes a server 0.6 MiB

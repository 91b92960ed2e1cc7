"""Jetstream: the ATProto firehose as light, friendly JSON over WebSocket.

Read the code in the order in which data flows: `model` defines events, `upstream` decodes the firehose into
events, `ingest` stamps and stores them, `eventlog` keeps them, and `delivery` sends them to subscribers,
which connect through `web`. `app` starts and stops these parts, and `cli` starts `app`.
"""

from importlib.metadata import version

__version__ = version("jetstream-server")

"""Jetstream: the ATProto firehose as light, friendly JSON over WebSocket.

Read the code in the order the data flows: `events` says what an event is; `firehose` makes events of
upstream's frames; `sequencer` stamps them; `log` keeps them; `delivery` brings them to subscribers; `web` is
where those connect. `service` puts the parts together, `cli` starts it.
"""

from importlib.metadata import version

__version__ = version("jetstream-server")

"""Load for any Jetstream: many subscribers from one process, and an upstream to feed the server under test.

Read `ring` (frames that carry their send time) and `relay` (the upstream, a process of its own) for the way
in; `mix` (who subscribes to what), `stream` (WebSocket bytes to messages), `check` (what a subscriber must
get) and `load` (all the sockets) for the way out; `report` for what is said of it.
"""

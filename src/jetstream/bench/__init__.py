"""A load generator for any Jetstream: thousands of subscribers in one process, which check what they receive.

`mix` decides who subscribes to what, `stream` turns WebSocket bytes into frames and back, `subscription`
checks the bytes of one connection, `check` says what a subscriber must have received, `load` drives all
sockets, and `measure` takes the figures. `process` reads the server's CPU time and memory, `delays` is a
histogram.
"""

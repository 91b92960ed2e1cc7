"""Many cores, one machine: `jetstream serve --edges N`.

    clients ──▶ Supervisor: accepts ──the socket itself──▶ edge 1 … edge N ──▶ the same clients
                    │                                          ▲ read the log
                    └── starts, watches, stops all ──▶ ingest ─┘ writes the log

The supervisor has the ports, and no log. It passes each connection to the edge with the fewest (`spread`,
`passing`). A control socket joins it to each child (`channel`): heartbeats, the figures of all processes
(`view`), and what limits hold for all of them (`shared_limits`). In a child, `child_main` runs the same
`Service` as in a server of one process, and `siblings` is its end of both sockets.
"""

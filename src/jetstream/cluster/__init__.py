"""A cluster on this machine, without containers: `jetstream demo-cluster`, and the tests that break things.

    clients ─▶ Balancer ─▶ edge-1 … edge-3            ▲ notified of each append, and read
                                │                     │
                                └──▶ postgres-1 ──────┴─ synchronous replication ─▶ postgres-2
                                         ▲
    relay ─▶ ingest-1 leads ─────────────┘       ingest-2 stands by

`members` says which processes there are and how they are started, and is pure. A `Process` is one of them; it
can be killed, frozen and started again, and a `Postgres` can be promoted and copied as well. `Cluster` has
all of them, and is what a program uses. `Balancer` gives clients one address for all edges.
"""

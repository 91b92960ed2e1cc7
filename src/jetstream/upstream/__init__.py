"""Upstream: from the bytes of a relay or PDS to events.

    relay ──▶ connection, inbox ──frames──▶ envelope ──▶ seq_tracker ──▶ extract ──events──▶ ingest
              one WebSocket                 fields       accept, drop,    records as JSON
                                                         or ask the log

`source` holds the connections of one upstream and runs the loop; `pipeline` drives the stages. Reading order:
`source`, `pipeline`, `envelope` (with `lenient`, for frames that no decoder reads), `seq_tracker`, `history`
(the events of the log that show that history is sent again), `extract` and `record`, then `connection` and
`inbox`. `drops` names every reason to leave something out.

Everything but `source`, `connection`, `inbox` and `history` is pure.
"""

"""Upstream: from the frames of a relay or PDS to events.

Reading order: `cbor` and `record` (DAG-CBOR, and a record as JSON), `car` (the blocks of a commit),
`decode` (one frame to its events), `sequence` (which `seq` to take), `intake` (frames to events and a
cursor, with the counts), all pure; then `upstream`, the connection.
"""

"""Upstream: from the frames of a relay or PDS to events.

Reading order: `cbor`, `walk` and `record` (DAG-CBOR, how much of it there is, and a record as JSON), `car`
(the blocks of a commit), `skim` (a frame that cannot be decoded whole), `decode` (one frame to its events),
`sequence` (which `seq` to take), `intake` (frames to events and a cursor, with the counts), all pure; then
`history` (which events of the log are watched for), `inbox` (the messages of a connection) and `upstream`,
the connection.
"""

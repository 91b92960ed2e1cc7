"""The formats of AT Protocol: DAG-CBOR and CAR, as they are on the wire. Pure: no I/O, no clock.

    values         cbor, cbor_encoder, cbor_scan    DAG-CBOR
    blocks         car                              by their CID
    identifiers    cid, tid, compact_did
    repositories   mst, mst_load, mst_node          the tree of records
    signatures     keys, encoded_key

What these read is foreign: each function says what it raises, and what it costs is bounded by its caller or
by a limit that stands beside it. Values are those of Python: `bytes`, `str`, `int`, `dict` and `list`, and
`Cid`.
"""

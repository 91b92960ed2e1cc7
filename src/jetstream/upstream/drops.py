"""Why a part of upstream's data is left out: the reasons, as the metrics label them.

    a frame as a whole     `Envelope.drop`        no event is made of it; its number counts
    an op or a record      raises `Dropped`       the other ops of its commit are events
    a field                a reason beside the    the event is passed on without it
                           events (`extract`)

To add a reason, name it here and raise `Dropped`, or set it as an envelope's `drop`, where it applies. The
keys are values of a metric's label and stay as they are; `docs/metrics.md` lists them.

Bad data is no error of the server: the smallest part that cannot be passed on is dropped and counted, and the
stream goes on (`docs/api.md`, "Bad data from upstream"). A whole frame is judged in `envelope`, its ops and
fields in `extract`, its records in `record`, its number in `seq_tracker`.
"""

from __future__ import annotations

from typing import Final

# In the order in which a frame is judged.
DROP_REASONS: Final = {
    "frame_cbor": "the frame is not two DAG-CBOR objects",
    "frame_header": "the header is no map or its op is unknown",
    "frame_size": "the frame is over 5,000,000 bytes; of a Jetstream, the message over 1,100,000",
    "frame_items": "the frame, or message of a Jetstream, has over 16,000 items",
    "frame_text": "a text message where frames are binary; of a Jetstream, a binary one",
    "frame_type": "a message type that is unknown",
    "repeat": "the frame was taken before",
    "message_form": "a message of a Jetstream that is not in the form of its wire",
    "unforeseen": "a message on which this server made an error, which is in its log",
    "position": "a position of a Jetstream that is not above the one before, or is a day ahead of the clock",
    "host": "a PDS speaks for an account whose document names another one",
    "malformed": "a field that is required is missing or of the wrong type",
    "did": "the DID does not match the DID syntax",
    "rev": "the rev of a commit or #sync is no TID",
    "field_cbor": "a handle, status or time that cannot be read, which was left out of the event",
    "field_size": "a handle over 253 bytes, a status or time over 64, which was left out of the event",
    "sync_size": "the blocks of a #sync are over 10,000 bytes",
    "commit_size": "the blocks of a commit are over 2,000,000 bytes",
    "commit_ops": "a commit has over 1,000 ops",
    "commit_items": "a commit's records before this one have over 48,000 items, or bytes that cost as much",
    "car": "the blocks of a commit are no readable CAR, or over 10,000",
    "op_cbor": "an op that is not DAG-CBOR: its path is not UTF-8, for example",
    "op_action": "an op that is neither create, update nor delete",
    "op_collection": "the collection of an op is no NSID",
    "op_rkey": "the rkey of an op is no record key",
    "block_missing": "the record of an op is not among the commit's blocks",
    "block_hash": "the record does not hash to the op's CID",
    "record_cbor": "the record is not DAG-CBOR",
    "record_type": "the record is not a map",
    "record_size": "the record is over 1 MiB",
    "record_depth": "the record is nested deeper than 128",
    "record_float": "the record has a float that is not a whole number",
    "record_items": "the record has over 8,000 items, or 2,000 with floats, odd keys or many byte strings",
    "json_size": "the record is over 990,000 bytes of JSON",
}


class Dropped(Exception):
    """This op or record cannot be passed on; `reason` is one of `DROP_REASONS`.

    Raised and caught within `extract` and `record`: no caller of `extract` sees it.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)

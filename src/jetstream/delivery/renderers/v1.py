"""The v1 wire, which libraries read: `"kind":"commit"`, operations in full, the CID (`docs/api.md`).

    {"did":…,"time_us":…,"kind":"commit","commit":{"rev":…,"operation":"create","collection":…,"rkey":…,
        "record":{…},"cid":…}}
    {"did":…,"time_us":…,"kind":"identity","identity":{…}}

It has no syncs. Clients have heartbeats if they ask for them.
"""

from __future__ import annotations

from typing import Final

from jetstream.delivery.renderers.template import (
    NO_RECORD,
    RECORD_AND_CID,
    TemplateRenderer,
    commit,
    heartbeat,
    notice,
)
from jetstream.model.event import ACCOUNT, CREATE, DELETE, IDENTITY, UPDATE

_COMMIT: Final = b'"kind":"commit"'

V1: Final = TemplateRenderer(
    "v1",
    {
        CREATE: commit(_COMMIT, b'"operation":"create"', RECORD_AND_CID),
        UPDATE: commit(_COMMIT, b'"operation":"update"', RECORD_AND_CID),
        DELETE: commit(_COMMIT, b'"operation":"delete"', NO_RECORD),
        IDENTITY: notice(b'"kind":"identity"', b"identity"),
        ACCOUNT: notice(b'"kind":"account"', b"account"),
    },
    heartbeat=heartbeat(b'"kind":"heartbeat"'),
)

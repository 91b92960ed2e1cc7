"""The classic wire: `"type":"com"`, `"id"` and `"acc"`, operations as one letter, no CID (`docs/api.md`).

    {"did":…,"time_us":…,"type":"com","commit":{"rev":…,"type":"c","collection":…,"rkey":…,"record":{…}}}
    {"did":…,"time_us":…,"type":"com","commit":{"rev":…,"type":"d","collection":…,"rkey":…}}
    {"did":…,"time_us":…,"type":"id","identity":{…}}

It has no syncs. Clients have heartbeats if they ask for them.
"""

from __future__ import annotations

from typing import Final

from jetstream.delivery.renderers.template import (
    NO_RECORD,
    RECORD,
    TemplateRenderer,
    commit,
    heartbeat,
    notice,
)
from jetstream.model.event import ACCOUNT, CREATE, DELETE, IDENTITY, UPDATE

_COMMIT: Final = b'"type":"com"'

CLASSIC: Final = TemplateRenderer(
    "classic",
    {
        CREATE: commit(_COMMIT, b'"type":"c"', RECORD),
        UPDATE: commit(_COMMIT, b'"type":"u"', RECORD),
        DELETE: commit(_COMMIT, b'"type":"d"', NO_RECORD),
        IDENTITY: notice(b'"type":"id"', b"identity"),
        ACCOUNT: notice(b'"type":"acc"', b"account"),
    },
    heartbeat=heartbeat(b'"type":"hb"'),
)

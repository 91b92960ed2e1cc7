"""The two wires over WebSocket, as subscribers in these tests receive them."""

from __future__ import annotations

from jetstream.delivery.encoding import Encoding
from jetstream.delivery.framing.websocket import WEBSOCKET
from jetstream.delivery.renderers import RENDERERS
from jetstream.delivery.renderers.template import RECORD, TemplateRenderer, commit
from jetstream.model.batch import Batch
from jetstream.model.event import CREATE

CLASSIC = Encoding(RENDERERS["classic"], WEBSOCKET)
V1 = Encoding(RENDERERS["v1"], WEBSOCKET)
# A wire that has nothing but creates. It counts as v1, for the metrics know the names of wires.
CREATES = Encoding(
    TemplateRenderer("v1", {CREATE: commit(b'"kind":"commit"', b'"operation":"create"', RECORD)}), WEBSOCKET
)


def message(encoding: Encoding, batch: Batch, index: int) -> bytes:
    """Return the JSON of one event; empty if the renderer declines it."""
    return encoding.renderer.render(batch, [index])[0]

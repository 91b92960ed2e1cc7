"""Encodings for the tests of delivery, and how to read what was framed."""

from __future__ import annotations

from websockets.client import ClientProtocol
from websockets.frames import Frame
from websockets.protocol import State
from websockets.uri import parse_uri

from jetstream.delivery.framing.websocket import WEBSOCKET, WebSocketFraming
from jetstream.delivery.renderers import RENDERERS
from jetstream.delivery.renderers.template import RECORD, TemplateRenderer, commit
from jetstream.delivery.subscriber import Encoding
from jetstream.model.batch import Batch
from jetstream.model.event import CREATE

CLASSIC = Encoding(RENDERERS["classic"], WEBSOCKET)
V1 = Encoding(RENDERERS["v1"], WEBSOCKET)
# A wire that has nothing but creates. It counts as v1, for the metrics know the names of wires.
CREATES = Encoding(
    TemplateRenderer("v1", {CREATE: commit(b'"kind":"commit"', b'"operation":"create"', RECORD)}), WEBSOCKET
)


class CostlyFraming(WebSocketFraming):
    """Frames as any others, but each is made only if a reader wants it."""

    costly = True


COSTLY = Encoding(RENDERERS["v1"], CostlyFraming())


def message(encoding: Encoding, batch: Batch, index: int) -> bytes:
    """Return the JSON of one event; empty if the renderer declines it."""
    return encoding.renderer.render(batch, [index])[0]


def frames_of(data: bytes) -> list[Frame]:
    """Read WebSocket frames with a client that is not ours."""
    client = ClientProtocol(parse_uri("ws://localhost/"), state=State.OPEN, max_size=None)
    client.receive_data(data)
    return [frame for frame in client.events_received() if isinstance(frame, Frame)]

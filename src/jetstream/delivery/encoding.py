"""`Encoding`: how a subscriber receives events, as the pair of a renderer and a framing.

    event ──▶ renderer ──▶ JSON ──▶ framing ──▶ bytes on the transport

The two know nothing of each other: each wire works on each transport. What a subscriber may choose is decided
where its request is read (`web.subscribe`).
"""

from __future__ import annotations

from typing import NamedTuple

from jetstream.delivery.framing import Framing
from jetstream.delivery.renderers import Renderer


class Encoding(NamedTuple):
    """How events become bytes on one kind of connection.

    Subscribers with equal encodings share what is rendered. So there is one object of each renderer and
    framing.
    """

    renderer: Renderer
    framing: Framing

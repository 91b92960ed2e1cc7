"""`Encoding`: what a subscriber receives, as the pair of a renderer and a framing."""

from __future__ import annotations

from typing import NamedTuple

from jetstream.delivery.framing import Framing
from jetstream.delivery.renderers import Renderer


class Encoding(NamedTuple):
    """How events become bytes on one kind of connection. Subscribers of equal encodings share their bytes."""

    renderer: Renderer
    framing: Framing

    @property
    def wire(self) -> str:
        """The name of the wire, as a label of metrics."""
        return self.renderer.name

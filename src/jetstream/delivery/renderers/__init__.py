"""Renderers: how an event is written as JSON, one module per wire.

A wire is a format of events that clients read. A renderer turns events of a batch into the JSON of its
wire. It does not know how messages reach a client: that is a framing. To add a wire, write a module with an
object that follows `Renderer`, and add it to `RENDERERS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from jetstream.delivery.renderers.classic import CLASSIC
from jetstream.delivery.renderers.v1 import V1
from jetstream.delivery.renderers.v2 import V2
from jetstream.model.batch import Batch


class Renderer(Protocol):
    """One wire's format of events. Rendering is pure: the same event always gives the same bytes."""

    @property
    def name(self) -> str:
        """The wire's name: in settings, and as a label of metrics."""

    def render(self, batch: Batch, indices: Sequence[int]) -> list[bytes]:
        """Return the JSON of each event of `batch` that `indices` names, in their order.

        An empty `bytes` stands for an event that the renderer declines, because its wire has no such kind:
        readers of this wire do not receive it. `indices` rise; a run without holes is a `range`.
        """

    @property
    def heartbeat_s(self) -> int:
        """After how many seconds without an event a reader that asks for none gets a heartbeat; 0: never."""

    def heartbeat(self, position: int, live: bool) -> bytes:
        """Return the JSON that says that all below `position` has been judged.

        A client that resumes after it as after an event loses nothing: its time is `position - 1`. `live`:
        whether the reader is at the tip. Empty when the wire has no heartbeats.
        """


RENDERERS: Final[Mapping[str, Renderer]] = {renderer.name: renderer for renderer in (CLASSIC, V1, V2)}

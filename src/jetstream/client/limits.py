"""The timeouts and limits of a subscription."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """The timeouts and limits of a subscription. Times are in seconds."""

    # For the dictionary if there is one, the TCP connection, TLS and the WebSocket handshake together.
    connect_timeout_s: float = 20.0
    ping_after_s: float = 30.0  # a server that has been silent for so long is pinged
    pong_timeout_s: float = 20.0  # for its answer; then the connection is closed
    heartbeats_missed_max: int = 3  # intervals without a message; then the connection is closed
    close_timeout_s: float = 0.25  # for the server to answer a close frame
    message_bytes_max: int = 16 << 20  # this server sends under 1 MB; others may send 6 MiB of JSON
    save_every_s: float = 1.0  # a cursor is saved no more often, and no later while the body runs
    queue_bytes_max: int = (
        1 << 20
    )  # `subscribe_sync`: of JSON that waits for the loop; one message may be longer

from __future__ import annotations

import socket

from jetstream.cluster.ports import free_ports, taken


def test_free_ports_follow_each_other_and_can_be_used() -> None:
    ports = free_ports(5)
    assert ports == list(range(ports[0], ports[0] + 5))
    for port in ports:
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_a_port_that_something_listens_on_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert taken([port]) == port
    assert taken([port]) is None

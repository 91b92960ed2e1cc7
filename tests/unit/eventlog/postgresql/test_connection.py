from __future__ import annotations

import pytest

from jetstream.eventlog.postgresql.connection import addresses


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("postgresql://a/log", ["postgresql://a/log"]),
        (
            "postgresql://me:x%2Fy@a:1,b,[::1]:2/log?sslmode=require",
            [
                "postgresql://me:x%2Fy@a:1/log?sslmode=require",
                "postgresql://me:x%2Fy@b/log?sslmode=require",
                "postgresql://me:x%2Fy@[::1]:2/log?sslmode=require",
            ],
        ),
        ("postgresql:///log?host=/run/postgresql", ["postgresql:///log?host=/run/postgresql"]),
    ],
)
def test_each_host_has_an_address_of_its_own(address: str, expected: list[str]) -> None:
    assert addresses(address) == expected

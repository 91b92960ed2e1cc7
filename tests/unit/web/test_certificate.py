"""`Certificate`: renewed while the server runs, and told about before it expires."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.tls import VALID_DAYS, certificate

from jetstream.conditions import Conditions
from jetstream.errors import SettingError
from jetstream.web.certificate import Certificate, expiry


class Now:
    """A clock that only moves when it is told to."""

    def __init__(self) -> None:
        self.time = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.time


@pytest.fixture
def pem(tmp_path: Path) -> Path:
    return certificate(tmp_path)


@pytest.fixture
def conditions() -> Conditions:
    return Conditions()


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def used(pem: Path, conditions: Conditions, now: Now) -> Certificate:
    """The certificate of a server."""
    return Certificate(pem, pem, conditions, now)


def test_it_says_when_it_expires(used: Certificate, pem: Path) -> None:
    assert used.expires == expiry(pem)
    assert abs(used.expires - datetime.now(UTC) - timedelta(days=VALID_DAYS)) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("left", "text"),
    [
        (timedelta(days=14, seconds=1), None),
        (timedelta(days=14), "expires in 14 days"),
        (timedelta(hours=1), "expires in 0 days"),
        (timedelta(0), "has expired: clients refuse it"),
        (timedelta(days=-3), "has expired: clients refuse it"),
    ],
)
def test_a_condition_holds_from_two_weeks_before(
    left: timedelta, text: str | None, used: Certificate, conditions: Conditions, now: Now
) -> None:
    now.time = used.expires - left
    used.check()
    if text is None:
        assert conditions.reasons == {}
    else:
        assert text in conditions.reasons["certificate"]
        assert f"{used.expires:%Y-%m-%d %H:%M}" in conditions.reasons["certificate"]


def test_a_new_one_ends_it(
    used: Certificate, pem: Path, tmp_path: Path, conditions: Conditions, now: Now
) -> None:
    now.time = used.expires - timedelta(days=1)
    used.check()
    assert "certificate" in conditions.reasons
    before, now.time = used.context, datetime.now(UTC)
    certificate(tmp_path)
    os.utime(pem, (1, 1))
    used.check()
    assert conditions.reasons == {}
    assert used.context is not before


def test_a_form_that_only_openssl_takes_is_refused_with_the_reason(
    used: Certificate, pem: Path, conditions: Conditions
) -> None:
    pem.write_text(pem.read_text().replace(" CERTIFICATE-", " TRUSTED CERTIFICATE-"))
    with pytest.raises(SettingError, match=r"--tls-cert.*whose end can be read"):
        expiry(pem)
    used.check()
    assert "the one before stays in force" in conditions.reasons["certificate"]
    pem.unlink()
    with pytest.raises(SettingError, match=r"--tls-cert.*No such file"):
        expiry(pem)


def test_one_that_cannot_be_used_is_told_before_the_time(
    used: Certificate, pem: Path, conditions: Conditions, now: Now
) -> None:
    now.time = used.expires - timedelta(days=1)
    before = used.context
    pem.write_text("nothing")
    for _ in range(2):
        used.check()
        assert "the one before stays in force" in conditions.reasons["certificate"]
    assert used.context is before

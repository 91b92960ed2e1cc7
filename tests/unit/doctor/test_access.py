from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.tls import VALID_DAYS, certificate

from jetstream.doctor.access import check_access
from jetstream.doctor.finding import Finding
from jetstream.settings import Settings, parse_networks

NOW = datetime.now(UTC)


def found(now: datetime = NOW, **settings: Any) -> list[Finding]:
    return list(check_access(Settings(**settings), now))


def one(check: str, level: str, words: str, now: datetime = NOW, **settings: Any) -> Finding:
    [finding] = found(now, **settings)
    assert (finding.check, finding.level) == (check, level)
    assert words in f"{finding.text} {finding.hint}"
    assert bool(finding.hint) == (level != "ok")
    return finding


@pytest.fixture
def pem(tmp_path: Path) -> Path:
    file = certificate(tmp_path)
    file.chmod(0o600)
    return file


def test_nothing_that_is_not_in_use_is_checked() -> None:
    assert found() == []


def test_a_certificate(pem: Path) -> None:
    one("tls", "ok", "is valid until", tls_cert=pem)
    soon, later = NOW + timedelta(days=VALID_DAYS - 13), NOW + timedelta(days=VALID_DAYS + 1)
    one("tls", "warn", "renew it: the server reads it again by itself", soon, tls_cert=pem)
    one("tls", "fail", "renew it: clients refuse it", later, tls_cert=pem)
    pem.chmod(0o644)
    one("tls", "warn", "chmod o-r", tls_cert=pem)


def test_a_certificate_that_cannot_be_used(pem: Path, tmp_path: Path) -> None:
    one("tls", "fail", "cannot be read", tls_cert=tmp_path / "none")
    (other := tmp_path / "other").mkdir()
    one("tls", "fail", "does not belong to the key", tls_cert=pem, tls_key=certificate(other))


@pytest.mark.parametrize("setting", ["subscriber_tokens", "operator_tokens"])
def test_files_of_tokens(setting: str, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    given: dict[str, Any] = {setting: file}
    one("tokens", "fail", "cannot be read", **given)
    file.write_text("a:0123456789abcdef\n")
    file.chmod(0o600)
    one("tokens", "ok", "1 tokens", **given)
    file.chmod(0o604)
    one("tokens", "warn", "chmod o-r", **given)
    file.write_text("a:short\n")
    one("tokens", "fail", "in line 1", **given)


def test_proxies() -> None:
    one("proxies", "warn", "any client can forge its address", trusted_proxies=parse_networks("::/0"))
    one("proxies", "warn", "--trusted-proxies", proxy_protocol=True)
    networks = parse_networks("127.0.0.0/8")
    one("proxies", "ok", "--metrics-listen", proxy_protocol=True, trusted_proxies=networks)
    assert found(proxy_protocol=True, trusted_proxies=parse_networks("10.0.0.1")) == []


def test_replays_that_never_end() -> None:
    one("limits", "warn", "set 1.0MB or more", address_replay_bytes=100_000)
    assert found(address_replay_bytes=None) == []

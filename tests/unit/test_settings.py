from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, replace
from io import StringIO
from ipaddress import ip_network
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Literal

import pytest
from rich.console import Console
from structlog.testing import capture_logs

from jetstream import app as service
from jetstream import cli
from jetstream import logging_setup as logs
from jetstream.cli.go_flags import GoFlags
from jetstream.errors import SettingError
from jetstream.settings import (
    UNUSED_VARIABLES,
    Address,
    Settings,
    require_data_dir,
    settings,
    unused_variables,
)
from jetstream.settings.values import PRIVATE, LogUrl, parse_duration, show_duration
from jetstream.supervisor import supervisor
from jetstream.upstreams import FIREHOSE_PATH, SUBSCRIBE_EVENTS_PATH, Upstream

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "settings.md"
Serve = Callable[..., Settings]
Fail = Callable[..., str]


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in settings():
        monkeypatch.delenv(setting.variable, raising=False)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Run `jetstream serve` up to the service, and return its settings."""
    told: list[Settings] = []

    monkeypatch.setattr(service, "serve", told.append)
    monkeypatch.setattr(supervisor, "serve", told.append)
    monkeypatch.setattr(cli, "run", lambda _main: None)
    monkeypatch.setattr(logs, "configure", lambda _level, _format: None)

    def run(*arguments: str) -> Settings:
        told.clear()
        try:
            cli.main(["serve", *arguments])
        except SystemExit as ended:
            if ended.code:
                raise
        return told[0]

    return run


@pytest.fixture
def fail(serve: Serve, capsys: pytest.CaptureFixture[str]) -> Fail:
    """Run `jetstream serve` with an invalid command line, and return the one line that it prints."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            serve(*arguments)
        output = capsys.readouterr()
        assert ended.value.code == 2
        assert output.out == ""
        assert output.err.startswith("jetstream: ")
        assert output.err.count("\n") == 1
        return output.err

    return run


@pytest.mark.parametrize(
    ("arguments", "unused"),
    [
        (["--upstream", "a.example", "--drain", "5s"], []),
        (["--role", "edge", "--listen", ":7"], []),
        (
            ["--role", "edge", "--upstream", "a.example", "--verify", "full", "--retention", "1h"],
            ["--retention", "--upstream", "--verify"],
        ),
        (["--role", "ingest", "--upstream", "a.example", "--verify", "full"], []),
        (["--role", "edge", "--upstream", "jetstream+wss://a.example", "--verify", "full"], ["--verify"]),
        (["--role", "ingest", "--wire", "v1", "--drain", "5s"], ["--drain", "--wire"]),
    ],
)
def test_settings_without_effect_in_a_role_are_named(
    serve: Serve, arguments: list[str], unused: list[str]
) -> None:
    assert sorted(serve(*arguments).unused) == unused


def test_settings_without_effect_in_a_mirror_are_named(serve: Serve) -> None:
    settings = serve(
        "--upstream", "jetstream+wss://a.example", "--verify", "full", "--follow-plc", "--wire", "v1"
    )
    assert settings.unused_by_mirror == ["--verify", "--follow-plc"]
    assert settings.mirrored == Upstream(
        "a.example:443", f"wss://a.example{SUBSCRIBE_EVENTS_PATH}", "jetstream"
    )
    assert serve("--upstream", "wss://a.example").mirrored is None


def test_the_log_is_in_the_data_directory_unless_it_is_elsewhere(serve: Serve) -> None:
    assert serve("--data-dir", "/a").log_dir == Path("/a")
    assert serve("--data-dir", "/a", "--log", "sqlite:/b").log_dir == Path("/b")


GOOD: list[tuple[str, str, str, Any]] = [
    ("--upstream", "WS_URL", "relay.example", f"wss://relay.example{FIREHOSE_PATH}"),
    ("--upstream", "WS_URL", "relay.example:8443", f"wss://relay.example:8443{FIREHOSE_PATH}"),
    ("--upstream", "WS_URL", "wss://relay.example/", f"wss://relay.example{FIREHOSE_PATH}"),
    ("--upstream", "WS_URL", "ws://localhost:2470", f"ws://localhost:2470{FIREHOSE_PATH}"),
    ("--upstream", "WS_URL", "https://pds.example", f"wss://pds.example{FIREHOSE_PATH}"),
    ("--upstream", "WS_URL", "http://[::1]:2583", f"ws://[::1]:2583{FIREHOSE_PATH}"),
    ("--upstream", "WS_URL", f"wss://relay.example{FIREHOSE_PATH}", f"wss://relay.example{FIREHOSE_PATH}"),
    ("--upstream", "WS_URL", "wss://relay.example/other?a=1#b", "wss://relay.example/other?a=1"),
    ("--upstream", "WS_URL", " relay.example ", f"wss://relay.example{FIREHOSE_PATH}"),
    (
        "--upstream",
        "WS_URL",
        "a.b-c_d:1=relay.example",
        (Upstream("a.b-c_d:1", f"wss://relay.example{FIREHOSE_PATH}"),),
    ),
    ("--upstream", "WS_URL", "none", ()),
    (
        "--upstream",
        "WS_URL",
        "jetstream+ws://a.example:7",
        (Upstream("a.example:7", f"ws://a.example:7{SUBSCRIBE_EVENTS_PATH}", "jetstream"),),
    ),
    ("--upstream-file", "UPSTREAM_FILE", "/tmp/a b.txt", Path("/tmp/a b.txt")),
    ("--listen", "LISTEN_ADDR", ":6009", Address("", 6009)),
    ("--listen", "LISTEN_ADDR", "127.0.0.1:0", Address("127.0.0.1", 0)),
    ("--listen", "LISTEN_ADDR", "[::1]:65535", Address("::1", 65535)),
    ("--listen", "LISTEN_ADDR", "localhost:80", Address("localhost", 80)),
    ("--metrics-listen", "METRICS_LISTEN_ADDR", ":6009", Address("", 6009)),
    ("--edges", "EDGES", "64", 64),
    ("--role", "ROLE", "ingest", "ingest"),
    ("--role", "ROLE", "edge", "edge"),
    ("--log", "LOG", "sqlite:/tmp/a b:c", LogUrl(Path("/tmp/a b:c"))),
    ("--log", "LOG", "sqlite:data", LogUrl(Path("data"))),
    ("--log", "LOG", "postgresql://u:p@h:1,h2/db?a=b", LogUrl(address="postgresql://u:p@h:1,h2/db?a=b")),
    ("--takeover-after", "TAKEOVER_AFTER", "10s", 10.0),
    ("--drain", "DRAIN", "30s", 30.0),
    ("--drain", "DRAIN", "none", None),
    ("--data-dir", "DATA_DIR", "/tmp/a b:c", Path("/tmp/a b:c")),
    ("--retention", "EVENT_TTL", "90m", 5_400.0),
    ("--clock-settle", "CLOCK_SETTLE", "90s", 90.0),
    ("--retention", "EVENT_TTL", "3d", 259_200.0),
    ("--retention", "EVENT_TTL", "1h30m", 5_400.0),
    ("--retention", "EVENT_TTL", "1.5h", 5_400.0),
    ("--retention", "EVENT_TTL", "250ms", 0.25),
    ("--retention", "EVENT_TTL", "2w", 1_209_600.0),
    ("--retention", "EVENT_TTL", "10000000d", 10_000_000 * 86_400.0),
    ("--retention-bytes", "RETENTION_BYTES", "20GB", 20_000_000_000),
    ("--forget", "FORGET", "none", "none"),
    ("--forget", "FORGET", "deleted,takendown", "deleted,takendown"),
    ("--wire", "WIRE", "v1", "v1"),
    ("--zstd-dictionary", "ZSTD_DICTIONARY", "none", "none"),
    ("--zstd-dictionary", "ZSTD_DICTIONARY", "/tmp/a b.zdict", "/tmp/a b.zdict"),
    ("--zstd-dictionary-url", "ZSTD_DICTIONARY_URL", "http://[::1]:80/a?b", "http://[::1]:80/a?b"),
    ("--upstream-cursor", "OVERRIDE_RELAY_CURSOR", "0", 0),
    ("--upstream-cursor", "OVERRIDE_RELAY_CURSOR", "30340180350", 30340180350),
    ("--upstream-cursor", "OVERRIDE_RELAY_CURSOR", "9" * 18, 10**18 - 1),
    ("--upstream-cursor", "OVERRIDE_RELAY_CURSOR", "relay.example:443=7", (("relay.example:443", 7),)),
    ("--upstream-cursor", "OVERRIDE_RELAY_CURSOR", "-1", None),
    ("--verify", "VERIFY", "off", "off"),
    ("--verify", "VERIFY", "signature", "signature"),
    ("--verify", "VERIFY", "full", "full"),
    ("--verify-workers", "VERIFY_WORKERS", "64", 64),
    ("--unresolved", "UNRESOLVED", "drop", "drop"),
    ("--unproven", "UNPROVEN", "drop", "drop"),
    ("--plc-url", "PLC_URL", "http://[::1]:2582/a", ("http://[::1]:2582/a",)),
    ("--plc-rate", "PLC_RATE", "0.5", 0.5),
    ("--plc-rate", "PLC_RATE", "10000", 10_000.0),
    ("--subscriber-buffer", "SUBSCRIBER_BUFFER", "500000", 500_000),
    ("--subscriber-buffer", "SUBSCRIBER_BUFFER", "1.5 MiB", 1_572_864),
    ("--subscriber-buffer", "SUBSCRIBER_BUFFER", "64kib", 65_536),
    ("--subscriber-buffer", "SUBSCRIBER_BUFFER", "1k", 1_000),
    ("--buffer-total", "BUFFER_TOTAL", "1GiB", 1 << 30),
    ("--slow-timeout", "SLOW_TIMEOUT", "5s", 5.0),
    ("--max-subscribers", "MAX_SUBSCRIBERS", "10", 10),
    ("--ready-idle", "READY_IDLE", "1h", 3_600.0),
    ("--ready-idle", "READY_IDLE", "none", None),
    ("--ready-lag", "READY_LAG", "5m", 300.0),
    ("--ready-lag", "READY_LAG", "none", None),
    ("--address-connections", "ADDRESS_CONNECTIONS", "7", 7),
    ("--address-connections", "ADDRESS_CONNECTIONS", "none", None),
    ("--address-connection-rate", "ADDRESS_CONNECTION_RATE", "0.5", 0.5),
    ("--address-connection-rate", "ADDRESS_CONNECTION_RATE", "none", None),
    ("--address-replays", "ADDRESS_REPLAYS", "3", 3),
    ("--address-replays", "ADDRESS_REPLAYS", "none", None),
    ("--address-replay-rate", "ADDRESS_REPLAY_RATE", "2", 2.0),
    ("--address-replay-rate", "ADDRESS_REPLAY_RATE", "none", None),
    ("--address-replay-bytes", "ADDRESS_REPLAY_BYTES", "2MiB", 2 << 20),
    ("--address-replay-bytes", "ADDRESS_REPLAY_BYTES", "none", None),
    ("--address-exempt", "ADDRESS_EXEMPT", "none", ()),
    ("--address-exempt", "ADDRESS_EXEMPT", "192.0.2.0/24", (ip_network("192.0.2.0/24"),)),
    (
        "--address-exempt",
        "ADDRESS_EXEMPT",
        "192.0.2.1, private",
        (*PRIVATE, ip_network("192.0.2.1")),
    ),
    ("--trusted-proxies", "TRUSTED_PROXIES", "none", ()),
    ("--trusted-proxies", "TRUSTED_PROXIES", "127.0.0.1", (ip_network("127.0.0.1"),)),
    (
        "--trusted-proxies",
        "TRUSTED_PROXIES",
        "10.0.0.0/8, fd00::/8",
        (ip_network("10.0.0.0/8"), ip_network("fd00::/8")),
    ),
    ("--tls-cert", "TLS_CERT", "/tmp/a b.pem", Path("/tmp/a b.pem")),
    ("--tls-key", "TLS_KEY", "key.pem", Path("key.pem")),
    ("--subscriber-tokens", "SUBSCRIBER_TOKENS", "/a/tokens", Path("/a/tokens")),
    ("--operator-tokens", "OPERATOR_TOKENS", "/a/tokens", Path("/a/tokens")),
    ("--log-level", "LOG_LEVEL", "debug", "debug"),
    ("--log-format", "LOG_FORMAT", "json", "json"),
]
BAD: list[tuple[str, str, list[str]]] = [
    (
        "--upstream",
        "WS_URL",
        ["ftp://relay.example", "wss://", "//relay.example", "wss://a:0", "wss://a:99999"],
    ),
    ("--upstream", "WS_URL", ["a b=relay.example", "=wss://a", "pds=wss://a", "a=wss://", "a=", "é=a"]),
    ("--upstream", "WS_URL", ["wss://a:b", "wss://[::1", "two words", "wss://a/\tb", "wss://"]),
    (
        "--listen",
        "LISTEN_ADDR",
        [
            "6008",
            "localhost",
            "a:",
            ":70000",
            "::1:5",
            "[zz]:1",
            "a:b:1",
            ":-1",
            ":\N{ARABIC-INDIC DIGIT ONE}",
        ],
    ),
    ("--metrics-listen", "METRICS_LISTEN_ADDR", ["6008", " :1"]),
    ("--edges", "EDGES", ["-1", "65", "many"]),
    ("--role", "ROLE", ["both", "EDGE"]),
    ("--log", "LOG", ["/var/lib/jetstream", "sqlite:", "sqlite", "mysql://host/log", "postgresql:log"]),
    ("--takeover-after", "TAKEOVER_AFTER", ["soon", "-1s"]),
    ("--drain", "DRAIN", ["0s", "10"]),
    (
        "--retention",
        "EVENT_TTL",
        [
            "24",
            "h",
            "0s",
            "1h 30m",
            "1e3s",
            "1y",
            "\N{ARABIC-INDIC DIGIT ONE}h",
            "10000001d",
            "9" * 400 + "h",
        ],
    ),
    ("--clock-settle", "CLOCK_SETTLE", ["0s", "5", "soon"]),
    ("--retention-bytes", "RETENTION_BYTES", ["0", "many", "0.4"]),
    ("--forget", "FORGET", ["all", "takendown", "deleted, takendown"]),
    ("--wire", "WIRE", ["v2", "V1", "classic,v1"]),
    (
        "--zstd-dictionary-url",
        "ZSTD_DICTIONARY_URL",
        ["ftp://a/b", "a.example/b", "https:///b", "http://a:x"],
    ),
    (
        "--upstream-cursor",
        "OVERRIDE_RELAY_CURSOR",
        ["-2", "1.5", "now", "9" * 19, "\N{FULLWIDTH DIGIT ONE}", "a=", "a=b"],
    ),
    ("--verify", "VERIFY", ["none", "true", "FULL"]),
    ("--verify-workers", "VERIFY_WORKERS", ["-1", "65", "auto"]),
    ("--unresolved", "UNRESOLVED", ["hold", "true"]),
    ("--unproven", "UNPROVEN", ["hold", "true"]),
    ("--plc-url", "PLC_URL", ["plc.directory", "ftp://a", "https://a:x", "https://a b"]),
    ("--plc-rate", "PLC_RATE", ["0", "0.0", "-1", "1e3", "10000.1", "many", "1/s"]),
    ("--follow-plc", "FOLLOW_PLC", ["maybe", "on"]),
    ("--subscriber-buffer", "SUBSCRIBER_BUFFER", ["0", "0.5", "1i", "1 MB MB", "9" * 400, "9999999TiB"]),
    ("--buffer-total", "BUFFER_TOTAL", ["none"]),
    ("--slow-timeout", "SLOW_TIMEOUT", ["0ms", "60"]),
    ("--max-subscribers", "MAX_SUBSCRIBERS", ["-5", "1k"]),
    ("--ready-idle", "READY_IDLE", ["0s", "60", "never"]),
    ("--ready-lag", "READY_LAG", ["0s", "60"]),
    ("--address-connections", "ADDRESS_CONNECTIONS", ["-1", "many", "1.5"]),
    ("--address-connection-rate", "ADDRESS_CONNECTION_RATE", ["0", "fast"]),
    ("--address-replays", "ADDRESS_REPLAYS", ["-1", "NONE"]),
    ("--address-replay-rate", "ADDRESS_REPLAY_RATE", ["0", "1/s"]),
    ("--address-replay-bytes", "ADDRESS_REPLAY_BYTES", ["0", "much"]),
    ("--address-exempt", "ADDRESS_EXEMPT", ["public", "private,", "private,x", "none,private", "10.0.0.1/8"]),
    ("--trusted-proxies", "TRUSTED_PROXIES", ["localhost", "10.0.0.1/8", "10.0.0.0/33", "1.2.3.4,", "::1:x"]),
    ("--proxy-protocol", "PROXY_PROTOCOL", ["v1", "on"]),
    ("--log-level", "LOG_LEVEL", ["loud", "INFO"]),
    ("--log-format", "LOG_FORMAT", ["xml"]),
]


SWITCHES = {"--follow-plc", "--proxy-protocol"}
# Any text may be the name of one.
FILES = {
    *("--data-dir", "--upstream-file", "--zstd-dictionary", "--tls-cert", "--tls-key"),
    *("--subscriber-tokens", "--operator-tokens"),
}


def field_of(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def in_rounds() -> list[list[tuple[str, str, str, Any]]]:
    """Return all good values, in rounds of one for each flag: to read a command line takes long."""
    by_flag: dict[str, list[tuple[str, str, str, Any]]] = {}
    for row in GOOD:
        by_flag.setdefault(row[0], []).append(row)
    return [list(filter(None, rows)) for rows in zip_longest(*by_flag.values())]


@pytest.mark.parametrize("rows", in_rounds(), ids=lambda rows: f"{len(rows)} flags")
def test_good_values_by_flag_and_by_variable(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, rows: list[tuple[str, str, str, Any]]
) -> None:
    values = {flag: value for flag, _, value, _ in rows}
    wanted = replace(Settings(), **{field_of(flag): expected for flag, _, _, expected in rows})

    assert serve(*chain(*values.items())) == wanted
    assert serve(*(f"{flag}={value}" for flag, value in values.items())) == wanted
    for _, variable, value, _ in rows:
        monkeypatch.setenv(f"JETSTREAM_{variable}", value)
    assert serve() == wanted


@pytest.mark.parametrize(("flag", "value"), [(flag, value) for flag, _, values in BAD for value in values])
def test_bad_values_are_named_with_their_flag(fail: Fail, flag: str, value: str) -> None:
    line = fail(f"{flag}={value}")
    assert flag in line
    assert value in line or repr(value) in line


@pytest.mark.parametrize(("variable", "value"), [(variable, values[0]) for _, variable, values in BAD])
def test_a_bad_value_is_named_with_its_variable(
    fail: Fail, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """One of each row: a value is read by the same code, wherever it comes from."""
    monkeypatch.setenv(f"JETSTREAM_{variable}", value)
    line = fail()
    assert f"JETSTREAM_{variable}" in line
    assert value in line or repr(value) in line


@pytest.mark.parametrize(
    "value",
    [
        "x=wss://me:hunter2@",
        "me=hunter2@a:b",
        "wss://me:hunter2@",
        "http://me:hunter2@a b",
        "ftp://me:hunter2@a/b?c=hunter2",
        "hunter2@a:99999",
    ],
)
def test_a_bad_upstream_is_named_without_its_password(
    value: str, fail: Fail, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "hunter2" not in fail("--upstream", value)
    monkeypatch.setenv("JETSTREAM_WS_URL", value)
    assert "hunter2" not in fail()


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me:hunter2/x@db/log",
        "postgresql://me:1/hunter2@db/log",
        "postgresql://me:hunter2?x@db/log",
        "postgresql://me:1?hunter2@db/log",
        "postgresql://me:hunter2#x@db/log",
        "postgresql://me:1#hunter2@db/log",
        "postgresql://me:hunter2@x@db/log",
        "postgresql://me:[hunter2@db/log",
        "postgresql://me:hunter2@db:port/log",
    ],
)
def test_an_address_of_a_database_that_means_something_else_is_named_without_its_password(
    address: str, fail: Fail, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = fail("--log", address)
    assert "write / as %2F" in line
    assert "hunter2" not in line
    monkeypatch.setenv("JETSTREAM_LOG", address)
    assert "hunter2" not in fail()


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://me:hunter2@db/log", "postgresql://db/log"),
        ("postgresql://me:hunt%2Fer2@db1:5432,db2/log?sslmode=require", "postgresql://db1:5432,db2/log"),
        ("postgresql:///log?host=/run/postgresql&user=me&password=hunter2", "postgresql:///log"),
        ("postgresql://me@%2Frun%2Fpostgresql/log", "postgresql://%2Frun%2Fpostgresql/log"),
        ("postgres://[::1]:5432/log?user=me@db&password=hunter2", "postgres://…"),
    ],
)
def test_the_address_of_a_database_is_shown_without_its_password(
    serve: Serve, address: str, shown: str
) -> None:
    settings = serve("--log", address)
    assert settings.database == address
    assert str(settings.log) == shown
    assert "hunter" not in repr(settings)


def test_several_upstreams_and_their_cursors_by_flags_and_by_variables(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = replace(
        Settings(),
        upstream=(
            Upstream("a.example:443", f"wss://a.example{FIREHOSE_PATH}"),
            Upstream("b", f"ws://b.example:80{FIREHOSE_PATH}"),
        ),
        upstream_cursor=(("a.example:443", 1), ("b", 2)),
    )
    two = ["--upstream", "a.example", "--upstream", "b=ws://b.example:80"]
    assert serve(*two, "--upstream-cursor", "a.example:443=1", "--upstream-cursor=b=2") == wanted
    monkeypatch.setenv("JETSTREAM_WS_URL", "a.example, b=ws://b.example:80")
    monkeypatch.setenv("JETSTREAM_OVERRIDE_RELAY_CURSOR", "a.example:443=1,b=2")
    assert serve() == wanted


@pytest.mark.parametrize("value", ["https://me:hunter2@", "http://me:hunter2@a b", "https://me:hunter2@a?b"])
def test_a_bad_plc_directory_is_named_without_its_password(
    value: str, fail: Fail, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "hunter2" not in fail("--plc-url", value)
    assert "hunter2" not in fail("--plc-url", "https://a", "--plc-url", value)
    monkeypatch.setenv("JETSTREAM_PLC_URL", value)
    assert "hunter2" not in fail()


def test_several_plc_directories_by_flags_and_by_the_variable(
    serve: Serve, fail: Fail, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = replace(Settings(), plc_url=("https://a", "http://b"))
    assert serve("--plc-url", "https://a", "--plc-url=http://b", "--plc-url", "https://a") == wanted
    assert "9 directories are more than 8" in fail(*(f"--plc-url=http://{each}" for each in "abcdefghi"))
    assert "'https://a' must have no query" in fail("--plc-url", "https://a?b")
    assert "'b' is not an http" in fail("--plc-url", "https://a", "--plc-url", "b")
    monkeypatch.setenv("JETSTREAM_PLC_URL", "https://a, http://b")
    assert serve() == wanted


@pytest.mark.parametrize(
    ("variable", "flag", "values", "named"),
    [
        (
            "WS_URL",
            "--upstream",
            ["a.example", "wss://a.example:443/x"],
            "'a.example:443' is the name of two",
        ),
        ("WS_URL", "--upstream", ["a=a.example", "a=b.example"], "'a' is the name of two upstreams"),
        ("WS_URL", "--upstream", ["a.example", "none"], "'none'"),
        ("WS_URL", "--upstream", ["a.example", ""], "''"),
        ("OVERRIDE_RELAY_CURSOR", "--upstream-cursor", ["a=1", "2"], "'2' is one of several"),
        ("OVERRIDE_RELAY_CURSOR", "--upstream-cursor", ["a=1", "a=2"], "'a=2' is the second one for 'a'"),
    ],
)
def test_values_that_cannot_be_together_are_named(
    fail: Fail, monkeypatch: pytest.MonkeyPatch, variable: str, flag: str, values: list[str], named: str
) -> None:
    line = fail(*(f"{flag}={value}" for value in values))
    assert flag in line
    assert named in line
    monkeypatch.setenv(f"JETSTREAM_{variable}", ",".join(values))
    line = fail()
    assert f"JETSTREAM_{variable}" in line
    assert named in line


@pytest.mark.parametrize(
    ("value", "expected"), [("true", True), ("1", True), ("false", False), ("no", False)]
)
def test_a_switch_has_no_value_or_one(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, value: str, expected: bool
) -> None:
    for flag in SWITCHES:
        field = field_of(flag)
        wanted, on = Settings(**{field: expected}), Settings(**{field: True})  # type: ignore[arg-type]
        assert serve(flag) == on
        assert serve(f"{flag}={value}") == wanted
        variable = f"JETSTREAM_{field_of(flag).upper()}"
        monkeypatch.setenv(variable, value)
        assert serve() == wanted
        monkeypatch.delenv(variable)


def test_every_setting_is_tested_with_good_and_with_bad_values() -> None:
    flags = {setting.flag for setting in settings()}

    assert {row[0] for row in GOOD} == flags - SWITCHES
    assert {row[0] for row in BAD} == flags - FILES
    assert {(row[0], f"JETSTREAM_{row[1]}") for row in GOOD} == {
        (one.flag, one.variable) for one in settings() if one.flag not in SWITCHES
    }


def test_without_anything_the_defaults_are_taken(serve: Serve) -> None:
    assert serve() == Settings()


def test_a_flag_takes_precedence_over_its_variable(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JETSTREAM_WIRE", "v1")
    monkeypatch.setenv("JETSTREAM_LISTEN_ADDR", ":1")

    assert serve("--wire", "classic", "--listen", ":2") == replace(Settings(), listen=Address("", 2))


def test_an_empty_variable_counts_as_unset(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in settings():
        monkeypatch.setenv(setting.variable, "")

    assert serve() == Settings()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--bogus"], "--bogus"),
        (["--bogus", "1"], "--bogus"),
        (["--no-listen"], "--no-listen"),
        (["--config", "x"], "--config"),
        (["extra"], "extra"),
        (["--listen"], "--listen"),
        (["--retention", "-1h"], "--retention"),
        (["--wire", "v1", "--wire", "v1"], "--wire"),
        (["--wire", "v1\nlike this"], "--wire"),
    ],
)
def test_other_errors_of_a_command_line(fail: Fail, arguments: list[str], named: str) -> None:
    assert named in fail(*arguments)


def test_unused_variables_are_logged_once(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JETSTREAM_WORKER_COUNT", "100")
    monkeypatch.setenv("JETSTREAM_LIVENESS_TTL", "15s")
    monkeypatch.setenv("JETSTREAM_PORT_6008_TCP", "tcp://10.0.0.1:6008")
    monkeypatch.setenv("JETSTREAM_WIRE", "v1")
    with capture_logs() as lines:
        assert serve().wire == "v1"

    assert [(line["log_level"], line["names"]) for line in lines] == [
        ("info", ["JETSTREAM_LIVENESS_TTL", "JETSTREAM_WORKER_COUNT"]),
        ("warning", ["JETSTREAM_PORT_6008_TCP"]),
    ]


def test_flags_of_the_go_servers_are_ours(serve: Serve) -> None:
    ours = serve(
        *("--upstream", "ws://relay.example", "--listen", ":1", "--metrics-listen", ":2"),
        *("--retention", "72h", "--upstream-cursor", "5"),
    )
    assert ours == serve(
        *("--ws-url", "ws://relay.example", "--listen-addr", ":1", "--metrics-listen-addr", ":2"),
        *("--event-ttl", "72h", "--override-relay-cursor", "5"),
    )
    assert serve("--relay-url=relay.example", "--addr=:1") == serve("--upstream=relay.example", "--listen=:1")
    assert serve("--override-relay-cursor", "-1").upstream_cursor is None


def test_flags_of_the_go_server_without_meaning_are_logged_once(serve: Serve) -> None:
    with capture_logs() as lines:
        assert serve("--worker-count", "100", "--liveness-ttl=15s") == Settings()
    assert [(line["log_level"], line["names"]) for line in lines] == [
        ("info", ["--liveness-ttl", "--worker-count"])
    ]
    flags = {f"JETSTREAM_{field.name.upper()}" for field in fields(GoFlags)}
    assert flags == UNUSED_VARIABLES


def test_a_command_line_of_the_go_server_is_told_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    for line in (["--ws-url=wss://relay.example"], ["--event-ttl", "24h"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(line)
        assert ended.value.code == 2
        assert f"Did you mean `jetstream serve {line[0].partition('=')[0]}`?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("RETENTION", "EVENT_TTL"),
        ("EVENT_TTTL", "EVENT_TTL"),
        ("LISTEN", "LISTEN_ADDR"),
        ("WSURL", "WS_URL"),
        ("RELAY_URL", "WS_URL"),
        ("ADDR", "LISTEN_ADDR"),
        ("METRICS_LISTEN", "METRICS_LISTEN_ADDR"),
        ("PORT_6008_TCP", None),
        ("SERVICE_HOST", None),
        ("X", None),
    ],
)
def test_a_typo_in_a_variable_is_told_what_is_meant(
    name: str, meant: str | None, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"JETSTREAM_{name}", "1")
    with capture_logs() as lines:
        serve()
    (line,) = lines
    assert line["names"] == [f"JETSTREAM_{name}"]
    assert line.get("did_you_mean") == (meant and {f"JETSTREAM_{name}": f"JETSTREAM_{meant}"})


def test_unused_variables_are_those_of_the_go_server_and_unknown_ones() -> None:
    environment = dict.fromkeys(
        [*UNUSED_VARIABLES, "JETSTREAM_X", "JETSTREAM_WIRE", "PATH", "MY_JETSTREAM_X"], "1"
    )

    assert unused_variables(environment) == (sorted(UNUSED_VARIABLES), ["JETSTREAM_X"])
    assert unused_variables({}) == ([], [])


def test_settings_have_flags_and_variables_of_their_own() -> None:
    listed = settings()

    assert [setting.flag for setting in listed] == [
        f"--{field.name.replace('_', '-')}" for field in fields(Settings)
    ]
    assert len({setting.variable for setting in listed}) == len(listed)
    assert all(setting.text.endswith(".") for setting in listed)
    assert not {setting.variable for setting in listed} & UNUSED_VARIABLES


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.5, "500ms"),
        (0.0005, "0.0005s"),
        (90.0, "90s"),
        (5400.0, "90m"),
        (1_234_567.0, "1234567s"),
        (86_400.0, "24h"),
    ],
)
def test_a_duration_is_shown_as_it_is_parsed(seconds: float, shown: str) -> None:
    assert show_duration(seconds) == shown
    assert parse_duration(shown) == seconds


def test_defaults_are_shown_as_they_are_written() -> None:
    page = Console(width=200, file=StringIO())
    cli.app.help_print(["serve"], console=page)
    text = " ".join(page.file.getvalue().replace("│", " ").split())  # type: ignore[attr-defined]
    shown = re.findall(
        r"env var: (JETSTREAM_[A-Z_]+)\] \[default: (:6008|24h|5m|1MiB|16MiB|512MiB|1m|none|private)\]", text
    )
    assert shown == [
        ("JETSTREAM_EVENT_TTL", "24h"),
        ("JETSTREAM_RETENTION_BYTES", "none"),
        ("JETSTREAM_CLOCK_SETTLE", "5m"),
        ("JETSTREAM_LISTEN_ADDR", ":6008"),
        ("JETSTREAM_METRICS_LISTEN_ADDR", "none"),
        ("JETSTREAM_SUBSCRIBER_BUFFER", "1MiB"),
        ("JETSTREAM_BUFFER_TOTAL", "512MiB"),
        ("JETSTREAM_SLOW_TIMEOUT", "1m"),
        ("JETSTREAM_READY_IDLE", "1m"),
        ("JETSTREAM_READY_LAG", "1m"),
        ("JETSTREAM_ADDRESS_REPLAY_BYTES", "16MiB"),
        ("JETSTREAM_ADDRESS_EXEMPT", "private"),
        ("JETSTREAM_TRUSTED_PROXIES", "none"),
    ]


def test_no_help_page_shows_types_of_python(capsys: pytest.CaptureFixture[str]) -> None:
    commands = [
        "serve",
        "simulate",
        "record",
        "verify",
        "bench",
        "tail",
        "log stats",
        "log cat",
        "subscribers list",
    ]
    commands += ["subscribers kick", "top"]
    for command in [*commands, "keys import"]:
        with pytest.raises(SystemExit):
            cli.main([*command.split(), "--help"])
        text = capsys.readouterr().out
        assert "[OPTIONS]" in text or "ARGS" in text
        assert re.findall(r"\b(?:FLOAT|INT|STR|PATH|False|True|UPSTREAM\.\.\.)\b|\('|\.0\]", text) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_the_flags_of_every_command(shell: Literal["bash", "zsh", "fish"]) -> None:
    script = cli.app.generate_completion(prog_name="jetstream", shell=shell)
    assert [flag for flag in ("retention", "since", "subscribers", "repos") if flag not in script] == []


@pytest.mark.parametrize("text", [":6008", "127.0.0.1:6008", "[::1]:6008", "localhost:1"])
def test_addresses_are_written_as_they_are_read(serve: Serve, text: str) -> None:
    assert str(serve("--listen", text).listen) == text


def test_the_data_directory_is_created(tmp_path: Path) -> None:
    require_data_dir(tmp_path / "a" / "b")
    require_data_dir(tmp_path / "a" / "b")

    assert (tmp_path / "a" / "b").is_dir()


def test_a_data_directory_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    wrong = {tmp_path / "file": "is not a directory", tmp_path / "file" / "a": "cannot be created: "}
    for directory, problem in wrong.items():
        with pytest.raises(SettingError, match=rf"^--data-dir: .*file.* {problem}") as caught:
            require_data_dir(directory)
        assert (caught.value.name, caught.value.value) == ("--data-dir", str(directory))


# The document

ROW = re.compile(r"\| `(--[a-z-]+)` \| `(JETSTREAM_[A-Z_]+)` \| (?:`(.+?)`|none) \| (\S.*\.) \|")


def test_the_document_lists_every_setting_in_the_order_of_the_help() -> None:
    rows = [found for line in DOCUMENT.read_text().splitlines() if (found := ROW.fullmatch(line))]

    assert [(row[1], row[2]) for row in rows] == [(setting.flag, setting.variable) for setting in settings()]


def test_the_defaults_in_the_document_are_the_defaults(serve: Serve) -> None:
    rows = [found for line in DOCUMENT.read_text().splitlines() if (found := ROW.fullmatch(line))]
    read = serve(*(f"{row[1]}={row[3]}" for row in rows if row[3]))
    for row, setting in zip(rows, settings(), strict=True):
        default = getattr(read, field_of(row[1])) if row[3] else None
        assert (row[1], default) == (setting.flag, setting.default)

    assert len(rows) == len(fields(Settings))


def test_the_document_names_the_unused_variables() -> None:
    text = DOCUMENT.read_text()

    assert [variable for variable in UNUSED_VARIABLES if f"`{variable}`" not in text] == []

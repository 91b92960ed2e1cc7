"""The file of keys: what is newer, imports, damage."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from tests.unit.identity.accounts import did_of, key_of

from jetstream.atproto.compact_did import compact_did
from jetstream.errors import KeyCacheError, KeyCacheReplaced
from jetstream.identity.export import Progress
from jetstream.identity.held import pack_key, unpack_key
from jetstream.identity.store import APPLICATION_ID, FILE, KeyStore, Row, record
from jetstream.limits import KeyLimits

NOW_S = 1_800_000_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[KeyStore]:
    store = KeyStore(tmp_path, lambda: NOW_S)
    yield store
    store.close()


def row(number: int, key: int, at_s: int) -> Row:
    return compact_did(did_of(number)), pack_key(key_of(key)), at_s, pds_of(key)


def pds_of(number: int) -> str | None:
    return [None, "", "pds.test", "other.test:8080"][number % 4]


def held(store: KeyStore, *numbers: int) -> list[tuple[bytes, int, str | None] | None]:
    dids = [compact_did(did_of(number)) for number in numbers]
    found = store.read(dids)
    return [found.get(did) for did in dids]


def records(store: KeyStore, rows: list[Row]) -> dict[int, bytes]:
    buckets: dict[int, bytes] = {}
    hosts = store.number_hosts({pds for *_, pds in rows if pds is not None})
    for did, key, _, pds in rows:
        host = 0 if pds is None else hosts[pds]
        buckets[did[0]] = buckets.get(did[0], b"") + record(did, unpack_key(key), host)
    return buckets


def fold(store: KeyStore, operations_max: int = 1000, at_s: int = 200) -> None:
    while store.fold(operations_max, at_s):
        pass


def test_what_is_written_is_there_after_a_restart(store: KeyStore, tmp_path: Path) -> None:
    store.write([row(1, 1, 100), row(2, 2, 200)])
    store.save(Progress("d", "7", 8, 9, 10))
    store.close()
    again = KeyStore(tmp_path)
    assert held(again, 1, 2, 3) == [row(1, 1, 100)[1:], row(2, 2, 200)[1:], None]
    assert again.progress() == Progress("d", "7", 8, 9, 10)
    again.close()


def test_many_are_read_at_once(store: KeyStore) -> None:
    store.write([row(number, 1, number) for number in range(1200)])
    assert len(store.read([compact_did(did_of(number)) for number in range(2000)])) == 1200


def test_a_key_that_was_fetched_replaces_any_other(store: KeyStore) -> None:
    store.write([row(1, 1, 500)])
    store.write([row(1, 2, 100)])
    assert held(store, 1) == [row(1, 2, 100)[1:]]
    store.write([], [compact_did(did_of(1))])
    assert held(store, 1) == [None]


@pytest.mark.parametrize(("at_s", "replaced"), [(1_000_000, True), (1_000_001, True), (999_999, False)])
def test_a_page_replaces_keys_that_were_fetched_before_it(store: KeyStore, at_s: int, replaced: bool) -> None:
    store.write([row(1, 1, 1_000_000)])
    store.apply([row(1, 2, at_s)], Progress())
    assert held(store, 1) == [row(1, 2, at_s)[1:] if replaced else row(1, 1, 1_000_000)[1:]]


def test_a_time_ahead_of_the_clock_does_not_count(store: KeyStore) -> None:
    store.write([row(1, 1, NOW_S + 10_000)])
    store.apply([row(1, 2, 5)], Progress())
    assert held(store, 1) == [row(1, 2, 5)[1:]]


def test_an_import_counts_at_its_end(store: KeyStore) -> None:
    store.write([row(3, 3, 5_000_000)])
    store.stage(records(store, [row(1, 1, 100), row(2, 2, 100)]), Progress(after="1"))
    store.stage(records(store, [row(1, 4, 200), row(3, 4, 200)]), Progress(after="2"))
    assert held(store, 1, 2) == [None, None]
    assert store.progress().after == "2"
    fold(store)
    assert held(store, 1, 2, 3) == [row(1, 4, 200)[1:], row(2, 2, 200)[1:], row(3, 3, 5_000_000)[1:]]


Operations = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), max_size=40)


@settings(max_examples=15)
@given(Operations, st.integers(1, 7), st.integers(1, 10))
def test_an_import_is_the_same_as_its_operations_one_by_one(
    tmp_path_factory: pytest.TempPathFactory,
    operations: list[tuple[int, int]],
    page: int,
    operations_max: int,
) -> None:
    rows = [row(number, key, 1_000) for number, key in operations]
    one, other = (KeyStore(tmp_path_factory.mktemp("keys")) for _ in range(2))
    for each in rows:
        one.apply([each], Progress())
    for start in range(0, len(rows), page):
        other.stage(records(other, rows[start : start + page]), Progress())
        if start % 3 == 0:  # an interrupted fold
            other.fold(operations_max, 1_000)
    fold(other, operations_max, 1_000)
    assert held(one, *range(6)) == held(other, *range(6))
    one.close()
    other.close()


@pytest.mark.parametrize("content", [b"no database at all", b"SQLite format 3\0" + bytes(5000), b"\0" * 100])
def test_a_damaged_file_is_moved_aside(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with capture_logs() as logs:
        store = KeyStore(tmp_path)
    assert len(logs) == 1
    assert logs[0]["damaged_file"] == str(tmp_path / f"{FILE}.damaged")
    assert (tmp_path / f"{FILE}.damaged").read_bytes() == content
    store.write([row(1, 1, 1)])
    assert held(store, 1) == [row(1, 1, 1)[1:]]
    store.close()


def test_damage_that_is_met_later_is_moved_aside(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    store.write([row(number, 1, number) for number in range(5000)])
    store.close()
    with (tmp_path / FILE).open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 200_000)
    with capture_logs() as logs:
        store = KeyStore(tmp_path)
        with pytest.raises(KeyCacheReplaced):
            held(store, *range(5000))
    assert [line["log_level"] for line in logs] == ["warning"]
    assert held(store, 1) == [None]
    store.write([row(1, 1, 1)])
    assert held(store, 1) == [row(1, 1, 1)[1:]]
    store.close()


def test_progress_that_is_damaged_begins_again(store: KeyStore) -> None:
    store.save(Progress(after="7"))
    store._connection.execute("UPDATE state SET value = ?", (b"{",))
    assert store.progress() == Progress()


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / FILE)
    other.execute("CREATE TABLE t (a)")
    other.close()
    with pytest.raises(KeyCacheError, match="is no cache of keys of this version: move it away"):
        KeyStore(tmp_path)
    assert not (tmp_path / f"{FILE}.damaged").exists()


def test_a_directory_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(KeyCacheError, match="unable to open"):
        KeyStore(tmp_path / "nothing")


def test_the_size_is_that_of_the_file(store: KeyStore, tmp_path: Path) -> None:
    store.write([row(number, 1, number) for number in range(1000)])
    size = store.bytes_on_disk()
    assert size == (tmp_path / FILE).stat().st_size
    store.close()
    assert size == (tmp_path / FILE).stat().st_size


def test_two_processes_can_write(store: KeyStore, tmp_path: Path) -> None:
    other = KeyStore(tmp_path)
    other.write([row(1, 1, 1)])
    store.write([row(2, 2, 2)])
    assert held(store, 1, 2) == held(other, 1, 2) == [row(1, 1, 1)[1:], row(2, 2, 2)[1:]]
    other.close()


def test_hosts_are_kept_once(store: KeyStore) -> None:
    numbers = store.number_hosts(["a.test", ""])
    assert store.number_hosts(["a.test", "b.test"])["a.test"] == numbers["a.test"]
    store.write([row(number, number, 1) for number in range(40)])
    (hosts,) = store._connection.execute("SELECT count(*) FROM host").fetchone()
    assert hosts == 5
    assert [each[2] for each in held(store, 0, 1, 2, 3) if each] == [pds_of(number) for number in range(4)]


def of_version_1(path: Path, *, importing: bool) -> None:
    file = sqlite3.connect(path / FILE)
    file.executescript(
        "CREATE TABLE key (did BLOB PRIMARY KEY, key BLOB NOT NULL, at INTEGER NOT NULL) WITHOUT ROWID;"
        "CREATE TABLE staged (id INTEGER PRIMARY KEY, bucket INTEGER NOT NULL, records BLOB NOT NULL);"
        "CREATE INDEX staged_bucket ON staged (bucket);"
        "CREATE TABLE state (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;"
        f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 1;"
    )
    file.execute("INSERT INTO key VALUES (?, ?, ?)", row(1, 1, 100)[:3])
    file.execute("INSERT INTO state VALUES ('export', ?)", (orjson.dumps(asdict(Progress("d", "7"))),))
    if importing:
        file.execute("INSERT INTO staged VALUES (1, 0, ?)", (bytes(49),))
    file.commit()
    file.close()


@pytest.mark.parametrize("importing", [False, True])
def test_a_file_of_version_1_keeps_its_keys(importing: bool, tmp_path: Path) -> None:
    of_version_1(tmp_path, importing=importing)
    for _ in range(2):
        store = KeyStore(tmp_path)
        assert held(store, 1) == [(pack_key(key_of(1)), 100, None)]
        assert store.progress() == (Progress() if importing else Progress("d", "7"))
        assert store.fold(10, 1) is False
        store.close()


# Bounds


def web_row(number: int, at_s: int) -> Row:
    return compact_did(f"did:web:{number}.test"), pack_key(key_of(1)), at_s, f"{number}.test"


def count(store: KeyStore, table: str) -> int:
    return int(store._connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def test_accounts_that_anybody_can_have_are_bounded_and_the_oldest_go(tmp_path: Path) -> None:
    limits = KeyLimits(other_rows_max=100)
    store = KeyStore(tmp_path, lambda: NOW_S, limits)
    plc = [(bytes([1, *range(13), number]), pack_key(key_of(1)), 1, None) for number in range(50)]
    store.write(plc)
    for number in range(500):
        store.write([web_row(number, number)])
        assert count(store, "key") <= len(plc) + 111
    store.close()
    again = KeyStore(tmp_path, lambda: NOW_S, limits)
    again.write([web_row(500, 500)])  # a process may have ended before it has counted
    assert count(again, "key") == len(plc) + 100
    found = again.read([compact_did(f"did:web:{number}.test") for number in range(501)])
    assert sorted(at_s for _, at_s, _ in found.values()) == list(range(401, 501))
    assert len(again.read([did for did, *_ in plc])) == len(plc)
    again.close()


def test_hosts_above_the_bound_are_not_known_and_the_others_stay(tmp_path: Path) -> None:
    store = KeyStore(tmp_path, lambda: NOW_S, KeyLimits(hosts_max=3))
    store.write([web_row(number, 1) for number in range(5)])
    store.write([web_row(number, 2) for number in range(2, 7)])
    found = store.read([compact_did(f"did:web:{number}.test") for number in range(7)])
    hosts = {host for _, _, host in found.values()}
    assert len(found) == 7
    assert count(store, "host") == 3
    assert None in hosts
    assert len(hosts - {None}) == 3
    assert set(store.number_hosts(["new.test"]).values()) == {0}
    store.close()

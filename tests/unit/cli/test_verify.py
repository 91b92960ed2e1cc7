from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from tests.builders import account, identity
from tests.fixtures import captured_frames, fixture
from tests.signed import DID, KEY, TIME, Account, rev

from jetstream import cli
from jetstream.simulator import frames, recording
from jetstream.simulator.identities import did_document
from jetstream.simulator.repo import Revision
from jetstream.simulator.signing import K256Key

OTHER_KEY = K256Key(b"\x09" * 32)


def frame(revision: Revision, seq: int) -> bytes:
    return frames.encode(frames.Commit(DID, TIME, revision), seq)


def write(file: Path, data: Iterable[bytes], documents: Any = None) -> None:
    with recording.writing(file) as add:
        for each in data:
            add(each)
    if documents is not None:
        recording.write_documents(file, documents)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, list[str]], str]:
    """Return the exit code, the table's lines by verdict, and what is on standard error."""
    try:
        cli.main(["verify", *arguments])
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else -1
    out, err = capsys.readouterr()
    rows = [line.split("  ") for line in out.splitlines()[1:]]
    table = {row[0].strip(): [part for part in row[1:] if part] for row in rows}
    return code, {name: [cell.strip() for cell in cells] for name, cells in table.items()}, err


@pytest.fixture
def history() -> list[bytes]:
    """Frames of one account: six commits, an identity and an account message."""
    owner = Account()
    made = [frame(owner.create(f"{number}"), number + 1) for number in range(6)]
    return [*made, identity(7, did=DID), account(8, did=DID)]


def document(key: K256Key = KEY) -> dict[str, object]:
    return {DID: did_document(DID, "a.test", key.multibase, "https://pds.test")}


def test_a_good_recording_is_ok(
    tmp_path: Path, history: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "frames"
    write(file, history, document())
    code, table, _ = run(capsys, str(file))
    assert code == 0
    assert table == {
        "ok": ["6", f"#commit seq 1 {DID} {rev(1)}"],
        "not signed": ["2", f"#identity seq 7 {DID}"],
    }


def test_each_verdict_has_a_line_with_an_example(
    tmp_path: Path, history: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "frames"
    damaged = history[5].replace(b"\x64text\x60", b"\x64text\x61", 1)
    write(file, [*history[:2], history[3], history[0], damaged, b"\xff"], document())
    code, table, _ = run(capsys, str(file))
    assert code == 1
    assert {name: row[0] for name, row in table.items()} == {
        "ok": "2",
        "replay": "1",
        "gap": "1",
        "refused: hash": "1",
        "dropped: frame_cbor": "1",
    }
    assert table["gap"][1] == f"#commit seq 4 {DID} {rev(4)}: the last rev before it is {rev(2)}"
    assert table["dropped: frame_cbor"][1] == "#unknown seq None: the frame is not two DAG-CBOR objects"


def test_without_documents_signatures_are_unverified(
    tmp_path: Path, history: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "frames"
    write(file, history)
    code, table, err = run(capsys, str(file))
    assert (code, table["unverified"][0]) == (0, "6")
    assert err == f"jetstream: no DID documents ({file}.dids.json is missing): no signature was checked\n"


def test_a_recording_without_messages_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "frames"
    file.touch()
    assert run(capsys, str(file)) == (1, {}, f"jetstream: {file} is not a recording: it is empty\n")
    write(file, [])
    assert run(capsys, str(file)) == (1, {}, f"jetstream: {file} has no frames\n")


def test_of_a_damaged_recording_the_beginning_is_shown(
    tmp_path: Path, history: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "frames"
    write(file, history, document())
    with zstandard.open(file) as whole:
        data = whole.read()
    file.write_bytes(zstandard.compress(data[:-3]))
    code, table, err = run(capsys, str(file))
    assert (code, table["ok"][0]) == (1, "6")
    assert err.startswith(f"jetstream: {file} ends inside a frame")


def test_a_file_of_documents_is_named(
    tmp_path: Path, history: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    file, documents = tmp_path / "frames", tmp_path / "documents.json"
    write(file, history, document())
    documents.write_text(json.dumps(document(OTHER_KEY)))
    code, table, _ = run(capsys, str(file), "--documents", str(documents))
    assert (code, table["refused: signature"][0]) == (1, "6")


def test_an_audit_log_has_the_keys_of_the_past(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The key was rotated after the first commit: the document alone refuses it."""
    owner = Account()
    first = frame(owner.create("1"), 1)
    owner.repo.key = OTHER_KEY
    second = frame(owner.write(("create", "2", ""), at=3_600_000_000), 2)
    log = [
        {
            "did": DID,
            "operation": {
                "type": "plc_operation",
                "verificationMethods": {"atproto": f"did:key:{key.multibase}"},
            },
            "nullified": False,
            "createdAt": time,
        }
        for key, time in ((KEY, "2025-12-31T00:00:00Z"), (OTHER_KEY, "2026-01-01T00:30:00Z"))
    ]
    file = tmp_path / "frames"
    write(file, [first, second], {DID: log})
    assert run(capsys, str(file))[:2] == (0, {"ok": ["2", f"#commit seq 1 {DID} {rev(1)}"]})
    write(file, [first, second], document(OTHER_KEY))
    code, table, _ = run(capsys, str(file))
    assert code == 1
    assert {name: row[0] for name, row in table.items()} == {"refused: signature": "1", "ok": "1"}


@pytest.mark.parametrize(
    "found",
    [
        {"id": DID},
        "text",
        [],
        [{"did": "did:plc:b", "operation": {"type": "plc_tombstone"}, "createdAt": "2026-01-01T00:00:00Z"}],
        [{"did": DID, "operation": {"type": "a new one"}, "createdAt": "2025-01-01T00:00:00Z"}],
    ],
)
def test_documents_and_logs_that_cannot_be_read_have_no_key(
    found: object, tmp_path: Path, history: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "frames"
    write(file, history, {DID: found})
    code, table, _ = run(capsys, str(file))
    assert (code, table["unverified"][0]) == (0, "6")


def test_signature_mode_does_not_look_at_the_order(
    tmp_path: Path, history: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "frames"
    write(file, history[5::-1], document())
    _, table, _ = run(capsys, str(file), "--mode", "signature")
    assert {name: row[0] for name, row in table.items()} == {"ok": "6"}


def test_a_deleted_account_may_begin_again(
    tmp_path: Path, history: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "frames"
    gone = account(8, did=DID, active=False, status="deleted")
    write(file, [*history[:2], gone, history[0]], document())
    _, table, _ = run(capsys, str(file))
    assert {name: row[0] for name, row in table.items()} == {"ok": "3", "not signed": "1"}


def test_the_captured_frames_are_ok(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "frames"
    write(file, captured_frames())
    code, table, _ = run(capsys, str(file), "--documents", str(fixture("firehose/did_docs.json")))
    assert code == 0
    assert table["ok"][0] == "90"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[]", "is no JSON object with a DID document for each DID"),
        ("{", "cannot be read: "),
        (None, "cannot"),
    ],
)
def test_documents_that_cannot_be_used_are_a_usage_error(
    content: str | None, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, documents = tmp_path / "frames", tmp_path / "documents.json"
    write(file, [])
    if content is not None:
        documents.write_text(content)
    code, _, err = run(capsys, str(file), "--documents", str(documents))
    assert code == 2
    assert err.startswith(f"jetstream: --documents: '{documents}' {problem}")


def test_what_is_no_recording_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "frames"
    assert run(capsys, str(file))[0] == 2
    file.write_bytes(b"text")
    code, _, err = run(capsys, str(file))
    assert code == 1
    assert "is not a recording" in err

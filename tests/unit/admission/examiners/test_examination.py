"""One message by itself: what it proves, whether it is signed, its events."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from tests.fixtures import captured_frames, json_of
from tests.signed import DID, KEY, Account, fields_of

from jetstream.admission.examiners.examination import Finding, Task, examine, with_keys, without_keys
from jetstream.admission.examiners.in_flight import HEAD, packed, unpacked
from jetstream.atproto.encoded_key import K256_PREFIX, EncodedKey, parse_multikey
from jetstream.identity.documents import document_key
from jetstream.limits import UpstreamLimits
from jetstream.simulator.signing import K256Key
from jetstream.upstream.envelope import Envelope, read_envelope
from jetstream.upstream.extract import extract
from jetstream.verify.commit import Before, claimed, examine_commit, examine_sync
from jetstream.verify.verdict import crashed, refused
from jetstream.verify_modes import SIGNED_MODES, Mode

MODES: tuple[Mode, ...] = get_args(Mode)
SIGNED: tuple[Mode, ...] = ("signature", "full")
OWN = parse_multikey(KEY.multibase)
OTHER = parse_multikey(K256Key(b"\x08" * 32).multibase)
NO_POINT = EncodedKey(K256_PREFIX, b"\x02" + b"\xff" * 32)


@pytest.fixture
def fields(account: Account) -> dict[str, Any]:
    return fields_of(account.create("new", "other"))


def task(fields: dict[str, Any], *keys: EncodedKey) -> Task:
    return Task("commit", fields, keys)


@pytest.mark.parametrize("mode", MODES)
def test_every_captured_frame_has_the_events_of_the_last_stage(mode: Mode) -> None:
    documents = json_of("firehose/did_docs.json")
    for frame in captured_frames():
        envelope = read_envelope(frame)
        key = document_key(envelope.fields["repo"], documents[envelope.fields["repo"]])
        finding = examine(Task("commit", envelope.fields, (key,)), mode)
        assert finding.refused is None
        assert finding.signed is (True if mode in SIGNED_MODES else None)
        assert finding[3:] == extract(envelope, mode != "off")
        assert finding.events
        whole = examine_commit(envelope.fields)
        before = {"full": Before.PROVEN, "signature": Before.FOUND}.get(mode, Before.CLAIMED)
        assert finding.evidence == whole._replace(before=before)


@pytest.mark.parametrize("mode", MODES)
def test_a_sync_is_checked_as_a_whole_in_every_mode(account: Account, mode: Mode) -> None:
    fields = account.sync()
    good = examine(Task("sync", fields, (OWN,)), mode)
    assert good == Finding(
        None,
        examine_sync(fields),
        True if mode in SIGNED_MODES else None,
        *extract(Envelope("sync", None, fields)),
    )
    broken = fields | {"blocks": fields["blocks"][:-1] + b"x"}
    bad = examine(Task("sync", broken, (OWN,)), mode)
    assert bad.refused is not None
    assert (bad.refused.reason, bad.evidence, bad.events) == ("hash", None, ())


def test_the_repository_of_a_task(account: Account, fields: dict[str, Any]) -> None:
    assert task(fields).did == Task("sync", account.sync()).did == DID


@pytest.mark.parametrize("mode", SIGNED)
def test_one_of_several_keys_is_enough(fields: dict[str, Any], mode: Mode) -> None:
    finding = examine(task(fields, OTHER, NO_POINT, OWN), mode)
    assert (finding.refused, finding.signed, len(finding.events)) == (None, True, 2)


@pytest.mark.parametrize("mode", SIGNED)
def test_a_wrong_signature_leaves_the_evidence_and_no_events(fields: dict[str, Any], mode: Mode) -> None:
    finding = examine(task(fields, OTHER, NO_POINT), mode)
    assert finding == Finding(
        refused("signature", "it is by none of the account's known keys (2 tried)"),
        examine(task(fields), mode).evidence,
        signed=False,
    )


@pytest.mark.parametrize("mode", SIGNED)
def test_a_key_whose_bytes_were_damaged_fits_nothing(fields: dict[str, Any], mode: Mode) -> None:
    assert examine(task(fields, NO_POINT), mode).signed is False


@pytest.mark.parametrize("mode", SIGNED)
def test_without_a_key_everything_but_the_signature_is_checked(fields: dict[str, Any], mode: Mode) -> None:
    finding = examine(task(fields), mode)
    assert (finding.refused, finding.signed, len(finding.events)) == (None, None, 2)


@pytest.mark.parametrize("mode", ["off", "cid"])
def test_where_signatures_are_not_checked_any_key_will_do(fields: dict[str, Any], mode: Mode) -> None:
    assert examine(task(fields, OTHER), mode) == Finding(
        None, claimed(fields), None, *extract(Envelope("commit", None, fields), mode == "cid")
    )


@pytest.mark.parametrize(("mode", "reason"), [("off", ""), ("cid", ""), ("signature", ""), ("full", "proof")])
def test_an_op_that_was_left_out_is_noticed_in_the_mode_full(
    fields: dict[str, Any], mode: Mode, reason: str
) -> None:
    finding = examine(task(fields | {"ops": fields["ops"][:1]}, OWN), mode)
    assert (finding.refused.reason if finding.refused else "") == reason
    assert len(finding.events) == (0 if reason else 1)


@pytest.mark.parametrize("mode", MODES)
def test_a_commit_that_cannot_be_read_is_refused_in_every_mode(fields: dict[str, Any], mode: Mode) -> None:
    finding = examine(task(fields | {"blocks": b""}, OWN), mode)
    assert finding.refused is not None
    assert finding.refused.name == "refused"
    assert finding[1:] == (None, None, (), ())


def test_a_record_that_is_left_out_costs_no_other(fields: dict[str, Any]) -> None:
    limits = UpstreamLimits(record_items_max=1, unmeasured_record_bytes_max=1)
    finding = examine(task(fields, OWN), "full", limits)
    assert (finding.refused, finding.signed, finding.events) == (None, True, [])
    assert finding.drops == ["record_items", "record_items"]


@pytest.mark.parametrize("mode", SIGNED)
def test_an_error_of_our_own_refuses_the_message_and_is_named(fields: dict[str, Any], mode: Mode) -> None:
    """No message brings one about that is known of, so these break what the stage before has promised."""
    found = examine(task(fields, OTHER), mode)
    damaged = task({name: value for name, value in fields.items() if name != "ops"}, OWN)
    for finding in (
        examine(damaged, mode),
        with_keys(damaged, found, mode),
        without_keys(damaged, found, mode),
        with_keys(task(fields, OWN), Finding(None, None, None), mode),
    ):
        verdict = finding.refused
        assert verdict is not None
        assert verdict.label == "refused: crash"
        assert verdict.detail in {"KeyError: 'ops'", "AssertionError: it is not refused"}
        assert verdict.traceback.startswith("Traceback (most recent call last):")
        assert verdict.traceback.endswith(verdict.detail)
        assert finding[1:] == (None, None, (), ())
        assert unpacked(packed(finding)[HEAD.size :]) == finding


def test_what_is_kept_of_an_error_is_bounded() -> None:
    verdict = crashed(ValueError("x" * 100_000))
    assert (len(verdict.detail), len(verdict.traceback)) == (200, 4_000)

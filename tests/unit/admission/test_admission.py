"""What is passed on, in which order, and what the cursors say meanwhile. The log and the keys are fakes."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from tests.signed import DID, START_US, TIME, Account, fields_of, resigned
from tests.unit.admission.fakes import OWN, FakeLog, FarLog, Server, message

from jetstream.admission.examiners.examination import Finding, Task, examine
from jetstream.atproto.compact_did import compact_did
from jetstream.atproto.encoded_key import parse_multikey
from jetstream.eventlog import Gap, SourceCursor
from jetstream.identity.answers import Candidates
from jetstream.limits import AdmissionLimits, Limits
from jetstream.simulator import frames
from jetstream.simulator.repo import Revision
from jetstream.simulator.signing import K256Key
from jetstream.upstream.envelope import Envelope
from jetstream.upstream.extract import possible_keys
from jetstream.upstream.pipeline import DecodedBatch
from jetstream.upstreams import Upstream
from jetstream.verify.commit import Before, examine_commit
from jetstream.verify.verdict import Refused
from jetstream.verify_modes import Mode

OTHER_DID = "did:plc:" + "b" * 24
LATER = 10_000_000  # ten seconds after the first commit
OLD_KEY = K256Key(b"\x09" * 32)
Numbered = tuple[int, Envelope]


def commit(number: int, revision: Revision, did: str = DID) -> Numbered:
    return message(number, frames.Commit(did, TIME, revision))


def sync(number: int, account: Account) -> Numbered:
    return number, Envelope("sync", number, account.sync() | {"seq": number})


def identity(number: int, did: str = DID, handle: str = "a.test", time: str = TIME) -> Numbered:
    return message(number, frames.Identity(did, time, handle))


def status(number: int, did: str = DID, active: bool = True, status: str | None = None) -> Numbered:
    return message(number, frames.Account(did, TIME, active, status))


@pytest.fixture
def account() -> Account:
    return Account()


@pytest.fixture
def other() -> Account:
    return Account(did=OTHER_DID)


@pytest.fixture
def server() -> Server:
    made = Server()
    made.keys.known |= {DID: OWN, OTHER_DID: OWN}
    return made


@pytest.fixture
def merged() -> Server:
    made = Server(upstreams=("a", "b"))
    made.keys.known |= {DID: OWN, OTHER_DID: OWN}
    return made


# In order


async def test_messages_are_stored_in_order_with_their_states_and_the_cursor(
    server: Server, account: Account, other: Account
) -> None:
    async with server.running():
        first, second = account.create("1"), account.create("3")
        messages = [commit(1, first), commit(2, other.create("2"), OTHER_DID), commit(3, second), identity(4)]
        await server.take("a", *messages, status(5))
    assert server.log.rkeys == ["1", "2", "3", "i", "a"]
    assert server.log.cursors == {"a": SourceCursor(5)}
    state = server.log.state(account)
    assert state is not None
    assert state.rev == second.rev
    assert server.verdicts == {"ok": 3}


async def test_what_was_judged_before_is_a_replay(server: Server, account: Account) -> None:
    async with server.running() as admission:
        one, two = commit(1, account.create("1")), commit(2, account.create("2"))
        assert admission.knows(one[1]) is None
        await server.take("a", one, two, one, (7, two[1]))
        assert admission.knows(one[1])
        assert admission.knows(commit(3, account.create("3"))[1]) is False
        await server.take("a", sync(8, account))
    assert server.log.rkeys == ["1", "2", "s"]
    assert server.verdicts == {"ok": 2, "replay": 2, "gap": 1}
    assert server.log.cursors == {"a": SourceCursor(8)}


async def test_a_message_that_is_refused_leaves_the_state_as_it_is(server: Server, account: Account) -> None:
    async with server.running():
        one, two, three = (account.create(each) for each in "123")
        forged = resigned(two, one.commit.cid)
        await server.take("a", commit(1, one), commit(2, forged), commit(3, two), commit(4, three))
    assert server.log.rkeys == ["1", "2", "3"]
    assert server.verdicts == {"ok": 3, "refused: proof": 1}


async def test_a_message_on_which_the_judge_makes_an_error_is_dropped_alone(account: Account) -> None:
    """No message brings one about that is known of: these break what the stages before have promised."""
    one, two, three = (account.create(each) for each in "123")
    server = Server(examine_one=partial(empty_finding, two.rev))
    server.keys.known[DID] = OWN
    number = 1 << 70  # too large for JSON
    odd = Envelope("identity", 2, {"did": DID, "seq": number, "time": TIME})
    async with server.running():
        await server.take("a", commit(1, one), (2, odd), commit(3, two), commit(4, three))
    assert server.log.rkeys == ["1", "s", "3"]
    assert [(each.after_rev, each.rev) for each in server.log.gaps] == [(one.rev, three.rev)]
    assert server.log.cursors == {"a": SourceCursor(4)}
    assert server.verdicts == {"ok": 1, "refused: crash": 1, "gap": 1}
    assert server.dropped("a", "unforeseen") == 1


def empty_finding(rev: str, task: Task, mode: Mode) -> Finding:
    """Examine a message. What is found of those of a rev has neither evidence nor a refusal."""
    return Finding(None, None, True) if task.fields["rev"] == rev else examine(task, mode)


async def test_an_error_of_the_log_ends_it_and_drops_nothing(account: Account) -> None:
    server = Server(log=BrokenLog())
    server.keys.known[DID] = OWN
    with pytest.raises(ExceptionGroup) as raised:
        async with server.running():
            await server.take("a", commit(1, account.create("1")))
    assert raised.group_contains(OSError)
    assert (server.log.cursors, server.verdicts) == ({}, {})


class BrokenLog(FakeLog):
    """A log on a disk that fails."""

    def repo(self, did: bytes) -> bytes | None:
        raise OSError(5, "Input/output error")


async def test_a_break_in_the_chain_is_passed_on_and_reported(server: Server, account: Account) -> None:
    async with server.running():
        one, _, three, four = (account.create(each) for each in "1234")
        await server.take("a", commit(1, one), identity(2, OTHER_DID), commit(4, three), commit(5, four))
    assert server.log.rkeys == ["1", "i", "s", "3", "4"]  # readers of v2 are told by a #sync before it
    assert server.log.gaps == [Gap(3, DID, one.rev, three.rev, "commit")]
    assert server.verdicts == {"ok": 2, "gap": 1}


async def test_a_sync_shows_a_gap_too(server: Server, account: Account) -> None:
    async with server.running():
        one = account.create("1")
        await server.take("a", commit(1, one))
        two = account.create("2")
        await server.take("a", sync(2, account))
    assert server.log.gaps == [Gap(2, DID, one.rev, two.rev, "sync")]


async def test_breaks_are_nothing_where_only_signatures_are_checked(account: Account) -> None:
    server = Server("signature")
    server.keys.known[DID] = OWN
    async with server.running():
        one, _, three = (account.create(each) for each in "123")
        await server.take("a", commit(1, one), commit(3, three), commit(4, one))
    assert (server.log.rkeys, server.log.gaps) == (["1", "3"], [])
    assert server.verdicts == {"ok": 2, "replay": 1}


async def test_a_deleted_account_may_begin_again_at_any_rev(server: Server, account: Account) -> None:
    async with server.running():
        account.number = 100
        await server.take("a", commit(1, account.create("1")), status(2, active=False, status="deleted"))
        assert server.log.state(account) is None
        await server.take("a", commit(3, Account().create("2")))
    assert server.log.rkeys == ["1", "a", "2"]


@pytest.mark.parametrize("mode", ["signature", "full"])
async def test_what_came_before_a_deletion_is_no_event_when_it_is_sent_again(
    mode: str, account: Account
) -> None:
    server = Server(mode)
    server.keys.known[DID] = OWN
    account.number = -3_600_000_000  # an hour before the deletion
    sent = [account.create(each) for each in "123"]
    async with server.running():
        numbered = [commit(number, each) for number, each in enumerate(sent, 1)]
        old_sync = sync(14, account)
        await server.take("a", *numbered, status(4, active=False, status="deleted"))
        again = [commit(number, each) for number, each in enumerate(sent, 11)]
        await server.take("a", *again, old_sync)
        assert server.log.rkeys == ["1", "2", "3", "a"]
        assert server.verdicts == {"ok": 3, "replay": 4}
        await server.take("a", commit(15, Account().create("4")), *again)
    assert server.log.rkeys == ["1", "2", "3", "a", "4"]
    assert server.log.gaps == []


async def test_the_same_holds_for_each_of_several_sources(merged: Server, account: Account) -> None:
    one, two, three = (account.create(each) for each in "123")
    deleted = status(4, active=False, status="deleted")
    async with merged.running():
        await merged.take("a", commit(1, one), commit(2, two), commit(3, three), deleted, commit(5, two))
        await merged.take("b", commit(1, one), commit(2, two), commit(3, three), deleted, commit(5, three))
        await merged.take("a", commit(6, three))
        assert merged.log.rkeys == ["1", "2", "3", "a"]
        await merged.take("a", commit(7, Account().create("4")))
    assert merged.log.rkeys == ["1", "2", "3", "a", "4"]


async def test_what_cannot_be_passed_on_is_left_out_and_counted(server: Server, account: Account) -> None:
    async with server.running():
        await server.take("a", commit(1, account.create("1", "..", "2")))
    assert server.log.rkeys == ["1", "2"]
    assert server.dropped("a", "op_rkey") == 1


# Keys


async def test_only_the_account_waits_whose_key_is_missing(account: Account, other: Account) -> None:
    server = Server()
    server.keys.known[OTHER_DID] = OWN
    async with server.running() as admission:
        await server.take("a", commit(1, account.create("1")), commit(2, other.create("2"), OTHER_DID))
        await server.take("a", identity(3), commit(4, account.create("3")))
        await server.take("a", commit(5, other.create("4"), OTHER_DID))
        assert server.log.rkeys == ["2", "4"]
        assert server.log.cursors == {"a": SourceCursor(0, stored_to=5, unstored=(1, 3, 4))}
        assert admission.waiting == 3
        server.keys.bring(DID)
        await server.settle()
        assert admission.waiting == 0
    assert server.log.rkeys == ["2", "4", "1", "i", "3"]
    assert server.log.cursors == {"a": SourceCursor(5)}
    assert server.keys.asked.count(("wait", DID)) == 1
    assert server.verdicts == {"ok": 4}


@pytest.mark.parametrize("passes", [True, False])
async def test_without_a_key_in_time_the_setting_decides(passes: bool, account: Account) -> None:
    server = Server(pass_unverified=passes)
    async with server.running():
        await server.take("a", commit(1, account.create("1")), commit(2, account.create("2")), identity(3))
        for _ in range(2):
            server.keys.bring(DID, None)
            await server.settle()
    assert server.log.rkeys == (["1", "2", "i"] if passes else ["i"])
    assert server.verdicts == {"unverified": 2}
    assert server.log.cursors == {"a": SourceCursor(3)}


async def test_nothing_waits_longer_than_ten_seconds(account: Account) -> None:
    server = Server()
    async with server.running():
        await server.take("a", commit(1, account.create("1")))
        await server.passed(9.9)
        await server.take("a", commit(2, account.create("2")))
        assert server.log.rkeys == []
        await server.passed(0.2)
        assert server.log.rkeys == ["1"]
        await server.passed(10.0)
    assert server.log.rkeys == ["1", "2"]
    assert server.verdicts == {"unverified": 2}


async def test_what_is_due_at_once_is_judged_and_stored_in_parts(account: Account, other: Account) -> None:
    server = Server(limits=Limits(admission=AdmissionLimits(due_per_turn=1, run_ops_max=2)))
    async with server.running():
        await server.take("a", *(commit(number, account.create(str(number))) for number in range(1, 5)))
        await server.take("a", *(commit(4 + at, other.create(str(at)), OTHER_DID) for at in range(1, 5)))
        await server.passed(10.1)
        await server.settle()
        assert len(server.log.events) == 8
    assert max(server.log.appended) <= 2
    for did in (DID, OTHER_DID):
        assert [each.rkey for each in server.log.events if each.did == did.encode()] == [
            b"1",
            b"2",
            b"3",
            b"4",
        ]


async def test_what_has_no_room_is_judged_with_what_is_known(account: Account) -> None:
    limits = Limits(admission=AdmissionLimits(waiting_per_repo=3))
    server = Server(limits=limits)
    async with server.running() as admission:
        await server.take("a", *(commit(number, account.create(str(number))) for number in range(1, 6)))
        assert admission.waiting == 3
        assert server.log.rkeys == ["1", "2"]
        server.keys.bring(DID)
        await server.settle()
    assert server.log.rkeys == ["1", "2", "3", "4", "5"]
    assert server.verdicts == {"unverified": 2, "ok": 3}


async def test_a_signature_by_an_earlier_key_is_good(account: Account) -> None:
    old = Account(OLD_KEY)
    server = Server()
    server.keys.known[DID] = OWN
    server.keys.earlier[DID] = Candidates([OWN, parse_multikey(OLD_KEY.multibase)], "")
    async with server.running():
        await server.take("a", commit(1, old.create("1")), commit(2, old.create("2")), identity(3))
        await server.take("a", commit(4, old.create("3")))
    assert server.log.rkeys == ["1", "2", "i", "3"]
    assert server.keys.asked == [("announced", DID), ("after_failure", DID)]
    assert server.verdicts == {"ok": 3}


@pytest.mark.parametrize(
    ("reason", "is_out", "verdict"),
    [
        ("", True, "refused: signature"),
        ("not_found", True, "refused: signature"),
        ("unreachable", True, "unverified"),
        ("rate_limited", True, "unverified"),
        ("timeout", True, "unverified"),
        ("timeout", False, "refused: signature"),  # there were too many requests: others are answered
        ("redirect", True, "unverified"),
        ("malformed", True, "unverified"),
        ("redirect", False, "refused: signature"),
        ("unreadable", False, "unverified"),  # nobody but the account and the directory can bring this about
        ("too_big", False, "unverified"),
    ],
)
async def test_a_signature_by_no_key_is_refused_unless_earlier_keys_cannot_be_had(
    reason: str, is_out: bool, verdict: str
) -> None:
    server = Server()
    server.keys.is_out = is_out
    server.keys.known[DID] = OWN
    server.keys.earlier[DID] = Candidates([], reason)
    async with server.running():
        await server.take("a", commit(1, Account(OLD_KEY).create("1")))
    assert server.verdicts == {verdict: 1}
    assert server.log.cursors == {"a": SourceCursor(1)}


@pytest.mark.parametrize(("is_out", "verdict"), [(True, "unverified"), (False, "refused: signature")])
async def test_what_waits_too_long_for_earlier_keys_is_unverified_only_while_no_directory_answers(
    is_out: bool, verdict: str
) -> None:
    server = Server()
    server.keys.known[DID] = OWN
    server.keys.hangs, server.keys.is_out = True, is_out
    old = Account(OLD_KEY)
    async with server.running():
        await server.take("a", commit(1, old.create("1")), commit(2, old.create("2")))
        await server.passed(11)
    assert server.verdicts == {verdict: 2}
    assert server.log.cursors == {"a": SourceCursor(2)}


async def test_what_has_no_room_is_refused_although_no_directory_answers() -> None:
    """Else enough forged messages would make others pass."""
    server = Server(limits=Limits(admission=AdmissionLimits(waiting_per_repo=1)))
    server.keys.known[DID] = OWN
    server.keys.hangs = server.keys.is_out = True
    old = Account(OLD_KEY)
    async with server.running():
        await server.take("a", commit(1, old.create("1")), commit(2, old.create("2")))
        assert server.verdicts == {"refused: signature": 1}


async def test_what_waits_is_read_again_after_a_crash_and_nothing_else(
    account: Account, other: Account
) -> None:
    server = Server()
    server.keys.known[OTHER_DID] = OWN
    one, two = commit(1, account.create("1")), commit(2, other.create("2"), OTHER_DID)
    async with server.running():
        await server.take("a", one, two)
    assert server.log.cursors == {"a": SourceCursor(0, stored_to=2, unstored=(1,))}
    again = Server(log=server.log)
    again.keys.known |= {DID: OWN, OTHER_DID: OWN}
    async with again.running() as admission:
        assert admission.knows(two[1])
        await again.take("a", one)
        assert again.log.cursors == {"a": SourceCursor(1, stored_to=2)}
    assert again.log.rkeys == ["2", "1"]


async def test_what_came_before_a_deletion_is_no_event_after_a_crash(
    account: Account, other: Account
) -> None:
    """The log has erased it by then, and resuming begins before it, because something else had waited."""
    server = Server()
    server.keys.known[OTHER_DID] = OWN
    other.number = -10  # before the time of the deletion
    gone = status(3, OTHER_DID, active=False, status="deleted")
    messages = [commit(1, account.create("1")), commit(2, other.create("2"), OTHER_DID)]
    async with server.running():
        await server.take("a", *messages, gone)
    assert server.log.rkeys == ["2", "a"]
    assert server.log.cursors == {"a": SourceCursor(0, stored_to=3, unstored=(1,))}
    again = Server(log=server.log)
    again.keys.known |= {DID: OWN, OTHER_DID: OWN}
    again.deletions.restore(OTHER_DID, server.log.events[-1].body, START_US + 1_000_000)
    async with again.running():
        await again.take("a", *messages)
    assert again.log.rkeys == ["2", "a", "1"]


# The queue


async def test_a_source_waits_while_the_queue_is_full(server: Server, account: Account) -> None:
    server.limits = Limits(admission=AdmissionLimits(queue_batches_max=2, run_messages_max=1, runs_max=1))
    server.log.open.clear()
    async with server.running():
        offers = [
            asyncio.create_task(server.offer("a", commit(number, account.create(str(number)))))
            for number in range(1, 9)
        ]
        for _ in range(50):
            await asyncio.sleep(0)
        assert not all(each.done() for each in offers)
        server.log.open.set()
        await asyncio.gather(*offers)
        await server.settle()
    assert server.log.rkeys == [str(number) for number in range(1, 9)]


async def test_runs_are_examined_while_one_is_stored(server: Server, account: Account) -> None:
    server.log.open.clear()
    async with server.running():
        await server.offer("a", commit(1, account.create("1")))
        for _ in range(20):
            await asyncio.sleep(0)
        await server.offer("a", commit(2, account.create("2")))
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(server.examined) == 2
        assert server.log.rkeys == []
        server.log.open.set()
    assert server.log.rkeys == ["1", "2"]  # what was offered is stored at the end


class LogOfTurns(FakeLog):
    """Notes in which turns it was asked for states."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = 0
        self.turns: set[int] = set()

    def repo(self, did: bytes) -> bytes | None:
        self.turns.add(self.turn)
        return super().repo(did)


async def test_a_run_is_prepared_in_parts(account: Account) -> None:
    log = LogOfTurns()
    server = Server(log=log, limits=Limits(admission=AdmissionLimits(prepared_per_turn=1)))
    server.keys.known[DID] = OWN
    async with server.running():
        await server.offer("a", *(commit(number, account.create(str(number))) for number in range(1, 6)))
        for log.turn in range(20):
            await asyncio.sleep(0)
    assert len(log.turns) > 5
    assert log.rkeys == ["1", "2", "3", "4", "5"]


async def test_a_run_has_so_many_ops_and_no_more(server: Server, account: Account) -> None:
    server.limits = Limits(admission=AdmissionLimits(run_ops_max=4))
    async with server.running():
        revisions = [account.create(*(f"{each}{op}" for op in range(3))) for each in range(3)]
        messages = [commit(number, revision) for number, revision in enumerate(revisions, 1)]
        batches = [DecodedBatch(seq=each[0], accepted_messages=[each], ops=3) for each in messages]
        await asyncio.gather(*(server.stores["a"](batch, 0.0) for batch in batches))
        await server.settle()
    assert max(server.log.appended) == 3
    assert len(server.log.events) == 9


async def test_the_log_is_asked_when_all_that_was_offered_is_stored_or_waits(account: Account) -> None:
    server = Server()
    async with server.running() as admission:
        waiting, told = commit(1, account.create("1")), status(2, OTHER_DID)
        await server.offer("a", waiting, told)
        keys = [(DID.encode(), b"app.test.note", b"1", waiting[1].fields["rev"].encode())]
        assert await admission.holds(keys) == {keys[0]: 0}
        assert server.log.asked == []
        assert server.log.rkeys == ["a"]


async def test_what_waits_is_found_by_its_keys(account: Account) -> None:
    server = Server()
    async with server.running() as admission:
        one, two, told = commit(1, account.create("1", "2")), commit(2, account.create("3")), identity(3)
        await server.take("a", one, two, told)
        keys = [key for _, envelope in (one, two, told) for key in possible_keys(envelope)]
        absent = [(*keys[0][:3], two[1].fields["rev"].encode()), (b"did:web:a.test", *keys[0][1:])]
        assert len(keys) == 4
        assert await admission.holds([*keys, *absent]) == dict.fromkeys(keys, 0)
    assert server.log.asked == absent


async def test_what_has_waited_is_found_until_it_is_stored(account: Account) -> None:
    """It is judged in steps. Between two of them, others may ask."""
    server = Server(limits=Limits(admission=AdmissionLimits(turn_s=0.0)))
    async with server.running() as admission:
        messages = [commit(number, account.create(str(number))) for number in range(1, 4)]
        messages += [status(4), identity(5)]
        keys = [key for _, envelope in messages for key in possible_keys(envelope)]
        await server.take("a", *messages)
        server.log.open.clear()
        server.keys.bring(DID)
        waiting = set()
        for _ in range(30):
            assert await admission.holds(keys) == dict.fromkeys(keys, 0)
            waiting.add(admission.waiting)
            await asyncio.sleep(0)
        server.log.open.set()
        await server.settle()
        assert all((await admission.holds(keys)).values())
    assert waiting == {0, 5}
    assert server.log.rkeys == ["1", "2", "3", "a", "i"]


async def test_a_cursor_moves_though_there_is_no_message(server: Server) -> None:
    async with server.running():
        await server.stores["a"](DecodedBatch(seq=7), 0.0)
        await server.settle()
        assert server.log.cursors == {"a": SourceCursor(7)}


# Several sources


async def test_a_copy_is_examined_once(merged: Server, account: Account) -> None:
    async with merged.running():
        revisions = [account.create(str(number)) for number in range(5)]
        await asyncio.gather(
            merged.offer("a", *(commit(number, each) for number, each in enumerate(revisions))),
            merged.offer("b", *(commit(100 + number, each) for number, each in enumerate(revisions))),
        )
        await merged.settle()
    assert merged.log.rkeys == ["0", "1", "2", "3", "4"]
    assert len(merged.examined) == 5
    assert merged.verdicts == {"ok": 5, "replay": 5}
    assert merged.log.cursors == {"a": SourceCursor(4), "b": SourceCursor(104)}


async def test_a_copy_is_good_though_the_other_one_is_damaged(merged: Server, account: Account) -> None:
    async with merged.running():
        revision = account.create("1")
        good, damaged = fields_of(revision), fields_of(revision)
        damaged["blocks"] = damaged["blocks"][:-1]
        await asyncio.gather(
            merged.offer("a", (1, Envelope("commit", 1, damaged))),
            merged.offer("b", (1, Envelope("commit", 1, good))),
        )
        await merged.settle()
    assert merged.log.rkeys == ["1"]
    assert merged.verdicts == {"refused: car": 1, "ok": 1}


async def test_one_source_fills_the_gaps_of_the_other(merged: Server, account: Account) -> None:
    async with merged.running() as admission:
        revisions = [account.create(str(number)) for number in range(1, 8)]
        messages = [commit(number, each) for number, each in enumerate(revisions, 1)]
        await merged.take("a", *(messages[at] for at in (0, 2, 3, 5)))
        assert merged.log.rkeys == ["1"]
        assert merged.log.cursors == {"a": SourceCursor(2, stored_to=6, unstored=(3, 4, 6))}
        assert admission.waiting == 3
        await merged.take("b", messages[1], messages[4], messages[6])
    assert merged.log.rkeys == ["1", "2", "3", "4", "5", "6", "7"]
    assert (merged.log.gaps, admission.waiting) == ([], 0)
    assert merged.log.cursors == {"a": SourceCursor(6), "b": SourceCursor(7)}
    assert merged.verdicts == {"ok": 7}


async def test_what_one_source_has_lost_at_the_very_beginning_is_brought_by_the_other(
    merged: Server, account: Account
) -> None:
    async with merged.running() as admission:
        account.create("old")
        one, two = account.create("1", at=LATER), account.create("2")
        await merged.take("a", commit(2, two))
        assert (merged.log.rkeys, admission.waiting) == ([], 1)
        await merged.take("b", commit(11, one), commit(12, two))
    assert merged.log.rkeys == ["1", "2"]
    assert (merged.log.gaps, admission.waiting) == ([], 0)
    assert merged.verdicts == {"ok": 2, "replay": 1}


async def test_what_is_brought_later_than_that_is_a_repeat(merged: Server, account: Account) -> None:
    """By its rev, it is older than what readers have: they would go back."""
    async with merged.running():
        account.create("old")
        one, two, three = account.create("1", at=LATER), account.create("2"), account.create("3")
        await merged.take("a", commit(2, two))
        await merged.passed(2.1)
        assert merged.log.rkeys == ["2"]
        await merged.take("b", commit(11, one), commit(12, two), commit(13, three))
    assert merged.log.rkeys == ["2", "3"]
    assert merged.log.gaps == []
    assert merged.verdicts == {"ok": 2, "replay": 2}


async def test_the_first_message_is_held_for_no_message_from_long_before(
    merged: Server, account: Account
) -> None:
    async with merged.running() as admission:
        account.create("old")
        await merged.take("a", commit(1, account.create("1", at=LATER)))
        assert (merged.log.rkeys, admission.waiting) == (["1"], 0)


async def test_the_first_message_of_the_only_source_is_not_held(server: Server, account: Account) -> None:
    async with server.running() as admission:
        account.create("0")
        await server.take("a", commit(1, account.create("1")))
        assert (server.log.rkeys, admission.waiting) == (["1"], 0)


async def test_the_commit_of_a_sync_that_is_held_is_no_copy_of_it(merged: Server, account: Account) -> None:
    async with merged.running() as admission:
        revisions = [account.create("1"), account.create("2")]
        sync = (3, Envelope("sync", 3, account.sync()))
        await merged.take("a", commit(1, revisions[0]), sync)
        assert admission.waiting == 1
        await merged.take("b", commit(2, revisions[1]))
    assert merged.log.rkeys == ["1", "2"]
    assert (merged.log.gaps, admission.waiting) == ([], 0)
    assert merged.verdicts == {"ok": 2, "replay": 1}


@pytest.mark.parametrize("mode", ["cid", "signature", "full"])
async def test_the_commit_of_a_sync_that_was_passed_on_comes_once(mode: str, account: Account) -> None:
    upstreams = ("a", "b") if mode == "cid" else ("a",)
    server = Server(mode, upstreams=upstreams)
    server.keys.known[DID] = OWN
    async with server.running():
        revision = account.create("1")
        sync = Envelope("sync", 1, account.sync())
        await server.take("a", (1, sync))
        await server.passed(2.1)
        for source, number in itertools.product(upstreams, (2, 3)):
            await server.take(source, commit(number, revision))
            await server.take(source, (number + 10, sync))
    assert server.log.rkeys == ["s", "1"]
    assert server.verdicts == {"ok": 2, "replay": 4 * len(upstreams) - 1}


async def test_a_gap_that_nobody_fills_is_reported_after_two_seconds(
    merged: Server, account: Account
) -> None:
    async with merged.running():
        one, _, three, four, _, six = (account.create(each) for each in "123456")
        await merged.take("a", commit(1, one), commit(3, three), commit(4, four))
        await merged.passed(1.5)
        await merged.take("b", commit(6, six))
        assert merged.log.rkeys == ["1"]
        await merged.passed(0.6)
        assert merged.log.rkeys == ["1", "s", "3", "4"]
        await merged.passed(1.5)
    assert merged.log.rkeys == ["1", "s", "3", "4", "s", "6"]
    assert [(each.after_rev, each.rev) for each in merged.log.gaps] == [
        (one.rev, three.rev),
        (four.rev, six.rev),
    ]
    assert merged.verdicts == {"ok": 2, "gap": 2}


def without_proof(number: int, revision: Revision, verdict: str = "legacy") -> Numbered:
    """Return a commit without the proof, and without the first of its ops if nothing else shows that."""
    fields = fields_of(revision)
    if verdict == "legacy":
        return number, Envelope("commit", number, fields | {"prevData": None, "ops": fields["ops"][1:]})
    for node in revision.nodes:
        others = tuple(each for each in revision.nodes if each != node)
        fields = fields_of(revision._replace(nodes=others))
        with suppress(Refused):
            if examine_commit(fields).before is Before.INCOMPLETE:
                return number, Envelope("commit", number, fields)
    raise AssertionError("each node is needed to find the ops")


@pytest.fixture
def many(account: Account) -> Revision:
    """A commit before those of the tests, whose tree has so many nodes that one can be missing."""
    return account.create(*(f"old{number}" for number in range(60)))


@pytest.mark.parametrize("verdict", ["legacy", "incomplete"])
async def test_a_commit_without_a_proof_passes_at_once_from_the_only_source(
    server: Server, account: Account, many: Revision, verdict: str
) -> None:
    async with server.running():
        await server.take("a", commit(1, many), without_proof(2, account.create("1", "new0"), verdict))
        assert server.log.rkeys[-1] == "new0"
    assert server.verdicts == {"ok": 1, verdict: 1}


@pytest.mark.parametrize("verdict", ["legacy", "incomplete"])
async def test_a_copy_with_a_proof_is_preferred(
    merged: Server, account: Account, many: Revision, verdict: str
) -> None:
    async with merged.running() as admission:
        two, three = account.create("1", "new0"), account.create("3")
        await merged.take("a", commit(1, many), without_proof(2, two, verdict), commit(3, three))
        assert (merged.log.rkeys[60:], admission.waiting) == ([], 2)
        assert merged.log.cursors["a"] == SourceCursor(1, stored_to=3, unstored=(2, 3))
        await merged.take("b", commit(12, two))
        assert (merged.log.rkeys[60:], admission.waiting) == (["1", "new0", "3"], 0)
    assert merged.log.gaps == []
    assert merged.log.cursors == {"a": SourceCursor(3), "b": SourceCursor(12)}
    assert merged.verdicts == {"ok": 3, "replay": 1}


@pytest.mark.parametrize("verdict", ["legacy", "incomplete"])
async def test_a_commit_that_nobody_proves_passes_after_two_seconds(
    merged: Server, account: Account, many: Revision, verdict: str
) -> None:
    async with merged.running():
        two, three = account.create("1", "new0"), account.create("3")
        await merged.take("a", commit(1, many), without_proof(2, two, verdict), commit(3, three))
        await merged.passed(1.9)
        assert merged.log.rkeys[60:] == []
        await merged.passed(0.2)
    assert merged.log.rkeys[-2:] == ["new0", "3"]
    assert merged.log.gaps == []
    assert merged.verdicts == {"ok": 2, verdict: 1}


async def test_a_commit_passes_once_all_sources_have_brought_it_without_a_proof(account: Account) -> None:
    """As those of a PDS that knows no proofs: they wait for nobody."""
    server = Server(upstreams=("a", "b", "c"))
    server.keys.known[DID] = OWN
    async with server.running() as admission:
        one, two = account.create("1"), account.create("2", "3")
        await server.take("a", commit(1, one), without_proof(2, two))
        await server.take("b", without_proof(12, two), without_proof(12, two))
        assert admission.waiting == 1
        await server.take("c", without_proof(22, two))
        assert (server.log.rkeys, admission.waiting) == (["1", "3"], 0)
    assert len(server.examined) == 2  # equal copies are not examined
    assert server.verdicts == {"ok": 1, "legacy": 1, "replay": 3}


async def test_different_copies_without_a_proof_are_both_held(merged: Server, account: Account) -> None:
    async with merged.running() as admission:
        one, two = account.create("1"), account.create("2", "3")
        number, envelope = without_proof(12, two)
        whole = Envelope("commit", number, dict(envelope.fields) | {"ops": fields_of(two)["ops"]})
        await merged.take("a", commit(1, one), without_proof(2, two))
        await merged.take("b", (number, whole))
        assert admission.waiting == 0  # nobody is left
    assert sorted(merged.log.rkeys) in (["1", "2", "3"], ["1", "3"])
    assert merged.verdicts == {"ok": 1, "legacy": 1, "replay": 1}


async def test_copies_that_are_nested_too_deeply_to_compare_are_judged_one_by_one(
    merged: Server, account: Account
) -> None:
    async with merged.running() as admission:
        one, two = account.create("1"), account.create("2", "3")
        await merged.take("a", commit(1, one), deep(without_proof(2, two)))
        assert admission.waiting == 1
        await merged.take("b", deep(without_proof(12, two)))
        assert admission.waiting == 0  # nobody is left
    assert merged.log.rkeys == ["1", "3"]
    assert len(merged.examined) == 3
    assert merged.verdicts == {"ok": 1, "legacy": 1, "replay": 1}


def deep(numbered: Numbered) -> Numbered:
    """Return a commit whose first op has one more field, with lists in lists."""
    number, envelope = numbered
    nested: object = 0
    for _ in range(2_000):
        nested = [nested]
    first, *others = envelope.fields["ops"]
    return number, envelope._replace(fields={**envelope.fields, "ops": [first | {"more": nested}, *others]})


async def test_a_gap_without_a_proof_is_no_gap_if_the_others_bring_it(
    merged: Server, account: Account
) -> None:
    async with merged.running():
        one, two, three = account.create("1"), account.create("2", "3"), account.create("4", "5")
        await merged.take("a", commit(1, one), without_proof(3, three))
        await merged.take("b", commit(2, two), commit(3, three))
    assert merged.log.rkeys == ["1", "2", "3", "4", "5"]
    assert merged.log.gaps == []


@pytest.mark.parametrize("verdict", ["legacy", "incomplete"])
async def test_a_commit_without_a_proof_is_refused_if_the_setting_says_so(
    account: Account, many: Revision, verdict: str
) -> None:
    server = Server(upstreams=("a", "b"), pass_unproven=False)
    server.keys.known[DID] = OWN
    async with server.running() as admission:
        two = account.create("1", "new0")
        await server.take("a", commit(1, many), without_proof(2, two, verdict))
        assert admission.waiting == 0
        assert server.verdicts == {"ok": 1, "refused: unproven": 1}
        await server.take("b", commit(12, two))
    assert server.log.rkeys[60:] == ["1", "new0"]
    assert server.verdicts == {"ok": 2, "refused: unproven": 1}


async def test_neither_a_gap_nor_a_missing_key_hides_that_a_proof_is_missing(account: Account) -> None:
    server = Server(pass_unproven=False)
    async with server.running():
        one, two, _, four = (account.create(*each) for each in ("1", "23", "45", "67"))
        await server.take("a", without_proof(2, two))
        server.keys.bring(DID, None)
        await server.settle()
        server.keys.known[DID] = OWN
        await server.take("a", commit(11, one), without_proof(14, four))
    assert server.log.rkeys == ["1"]
    assert server.verdicts == {"ok": 1, "refused: unproven": 2}


async def test_nothing_is_held_for_a_source_that_is_gone(merged: Server, account: Account) -> None:
    async with merged.running():
        one, _, three = (account.create(each) for each in "123")
        await merged.passed(0.0)
        merged.connected = ["a"]
        await merged.passed(2.1)
        await merged.passed(2.1)
        await merged.take("a", commit(1, one), commit(3, three))
    assert merged.log.rkeys == ["1", "s", "3"]
    assert len(merged.log.gaps) == 1


async def test_a_source_that_has_just_lost_its_connection_is_waited_for(
    merged: Server, account: Account
) -> None:
    async with merged.running():
        one, two, three = (account.create(each) for each in "123")
        await merged.take("a", commit(1, one))
        merged.connected = ["a"]
        await merged.passed(0.0)
        await merged.passed(0.5)
        await merged.take("a", commit(3, three))
        assert merged.log.rkeys == ["1"]
        await merged.take("b", commit(2, two))
    assert merged.log.rkeys == ["1", "2", "3"]


async def test_what_is_held_does_not_overtake_what_is_due_before_it(merged: Server, account: Account) -> None:
    """The source that was waited for is gone by then, so nothing is held any more."""
    async with merged.running():
        one, _, three, four, five = (account.create(each) for each in "12345")
        await merged.passed(0.0)
        await merged.take("a", commit(1, one))
        merged.connected = ["a"]
        await merged.passed(0.0)
        await merged.passed(1.0)
        await merged.take("a", commit(3, three), commit(4, four))
        await merged.passed(0.9)
        await merged.take("a", commit(5, five))
        assert merged.log.rkeys == ["1"]
        await merged.passed(1.2)
    assert merged.log.rkeys == ["1", "s", "3", "4", "5"]
    assert merged.verdicts == {"ok": 3, "gap": 1}


async def test_a_sync_that_is_held_hides_no_commit_of_its_rev(merged: Server, account: Account) -> None:
    async with merged.running():
        one, two = account.create("1"), account.create("2")
        await merged.take("a", commit(1, one), sync(2, account))
        assert merged.log.rkeys == ["1"]
        await merged.take("b", commit(2, two))
    assert merged.log.rkeys == ["1", "2"]
    assert merged.log.gaps == []


@pytest.mark.parametrize("sync_first", [True, False])
async def test_a_sync_is_held_behind_the_commit_of_its_rev(
    sync_first: bool, merged: Server, account: Account
) -> None:
    async with merged.running():
        one, _, three = (account.create(each) for each in "123")
        held = [("a", sync(3, account)), ("b", commit(3, three))]
        await merged.take("a", commit(1, one))
        for source, each in held if sync_first else reversed(held):
            await merged.take(source, each)
        assert merged.log.rkeys == ["1"]
        await merged.passed(2.1)
    assert merged.log.rkeys == ["1", "s", "3"]
    assert merged.verdicts == {"ok": 1, "gap": 1, "replay": 1}


async def test_an_account_event_stays_behind_what_is_held(merged: Server, account: Account) -> None:
    async with merged.running():
        one, two, three = (account.create(each) for each in "123")
        await merged.take("a", commit(1, one), commit(3, three), status(4, active=False, status="takendown"))
        assert merged.log.rkeys == ["1"]
        await merged.take("b", commit(2, two))
    assert merged.log.rkeys == ["1", "2", "3", "a"]


async def test_what_a_relay_that_is_behind_sends_of_a_deleted_account_is_known(
    merged: Server, account: Account
) -> None:
    one, two = account.create("1"), account.create("2")
    sent = [one, two]
    async with merged.running():
        for source, first in (("a", 1), ("b", 11)):
            numbered = [commit(number, each) for number, each in enumerate(sent, first)]
            await merged.take(source, *numbered, status(first + 2, active=False, status="deleted"))
            assert merged.log.rkeys == ["1", "2", "a"]
            assert (merged.log.state(account) is None) == (source == "b")
        again = Account()
        await merged.take("a", commit(4, again.create("3")))
    assert merged.log.rkeys == ["1", "2", "a", "3"]
    assert merged.log.gaps == []


async def test_a_deleted_account_may_begin_again_below_the_state_that_another_relay_is_compared_with(
    merged: Server, account: Account
) -> None:
    """The clock of its PDS was some minutes ahead."""
    account.number = 240_000_000
    again = Account()
    async with merged.running() as admission:
        await merged.take("a", commit(1, account.create("1")), status(2, active=False, status="deleted"))
        begins = commit(3, again.create("2"))
        assert admission.knows(begins[1]) is None
        await merged.take("a", begins)
        assert admission.knows(begins[1])
    assert merged.log.rkeys == ["1", "a", "2"]


async def test_a_deleted_account_may_begin_again_before_all_relays_have_deleted_it(
    merged: Server, account: Account
) -> None:
    one, two = account.create("1"), account.create("2")
    three = Account().create("3", at=3)
    deleted = status(3, active=False, status="deleted")
    async with merged.running():
        await merged.take("a", commit(1, one), deleted, commit(4, three))
        await merged.take("b", commit(11, one), commit(12, two), deleted, commit(14, three))
    assert merged.log.rkeys == ["1", "a", "3"]
    assert merged.log.gaps == []


async def test_two_trees_of_one_rev_are_named(merged: Server, account: Account, other: Account) -> None:
    async with merged.running():
        one = account.create("1")
        twin = Account().create("2")
        await merged.take("a", commit(1, one))
        await merged.take("b", commit(1, twin))
    assert merged.log.rkeys == ["1"]
    assert merged.verdicts == {"ok": 1, "refused: equivocation": 1}


async def test_identities_and_accounts_pass_once(merged: Server) -> None:
    async with merged.running():
        await merged.take("a", identity(1), status(2, active=False, status="suspended"))
        await merged.take("b", identity(51), status(52, active=False, status="suspended"))
        await merged.take("b", identity(53, handle="b.test"), status(54))
    assert merged.log.rkeys == ["i", "a", "i"]
    assert merged.dropped("b", "repeat") == 3


async def test_all_accounts_are_looked_at_when_another_source_decides() -> None:
    limits = Limits(admission=AdmissionLimits(accounts_per_turn=1))
    server = Server(upstreams=("a", "b", "c"), limits=limits)
    async with server.running():
        for source, did in (("c", DID), ("b", OTHER_DID)):
            await server.take(source, status(1, did, active=False, status="takendown"))
        assert server.log.rkeys == []
        server.connected = ["b", "c"]
        await server.passed(0.0)
        await server.passed(31.0)
        assert server.log.rkeys == ["a"]


@pytest.mark.parametrize("mode", ["off", "cid"])
async def test_upstreams_are_merged_without_keys(mode: str, account: Account) -> None:
    server = Server(mode, upstreams=("a", "b"))
    async with server.running():
        one, two, three = (account.create(each) for each in "123")
        await server.take("a", commit(1, one), commit(3, three))
        await server.take("b", commit(1, one), commit(2, two), commit(3, three))
    assert server.log.rkeys == ["1", "2", "3"]
    assert (server.verdicts, server.log.gaps) == ({"ok": 3, "replay": 2}, [])


async def test_a_source_that_is_removed_loses_its_cursor(merged: Server) -> None:
    async with merged.running() as admission:
        await merged.take("a", identity(1))
        await merged.take("b", identity(2))
        await admission.forget(["a"])
        assert merged.log.cursors == {"b": SourceCursor(2)}


async def test_a_source_that_is_removed_is_forgotten_behind_what_it_has_sent(merged: Server) -> None:
    async with merged.running() as admission:
        await merged.take("b", identity(2))
        await merged.offer("a", identity(1))
        await admission.forget(["a"])
        await merged.settle()
        assert merged.log.cursors == {"b": SourceCursor(2)}


# PDSes


async def test_a_pds_speaks_for_its_own_accounts_only(account: Account, other: Account) -> None:
    server = Server(upstreams=("a",), pds=("pds",))
    server.keys.known |= {DID: OWN, OTHER_DID: OWN}
    server.keys.hosts[DID] = "pds"
    server.keys.coming_hosts |= {DID: "pds", OTHER_DID: "other.example"}
    async with server.running():
        await server.take("pds", commit(1, account.create("1")), commit(2, other.create("2"), OTHER_DID))
        await server.take("pds", status(3, OTHER_DID, active=False, status="deleted"), status(4))
        await server.take("pds", identity(5), identity(6, OTHER_DID))
        await server.take("a", commit(1, other.create("3", at=LATER), OTHER_DID))
    assert server.log.rkeys == ["1", "a", "i", "3"]
    assert server.dropped("pds", "host") == 3


@pytest.mark.parametrize("mode", ["cid", "full"])
async def test_a_pds_that_is_added_is_no_relay_before_it_is_in_the_list(mode: str, account: Account) -> None:
    """It is read before that, while others are added and removed."""
    server = Server(mode, upstreams=("a",), pds=("old",))
    server.keys.known[DID] = OWN
    server.keys.hosts[DID] = server.keys.coming_hosts[DID] = "other.example"
    async with server.running() as admission:
        server.stores["new"] = admission.join("new", "wss://new")
        gone = status(3, active=False, status="deleted")
        await server.take("new", commit(1, account.create("1")), identity(2), gone)
    assert server.log.rkeys == []


async def test_a_pds_that_is_removed_is_no_relay_for_what_waits() -> None:
    server = Server(upstreams=("a",), pds=("old",))
    server.keys.coming_hosts[DID] = "other.example"
    server.keys.hosts_come.clear()
    async with server.running() as admission:
        await server.take("old", identity(1), status(2, active=False, status="deleted"))
        assert admission.waiting == 2
        await admission.forget(["old"])
        await admission.use([Upstream("a", "wss://a")])
        await admission.settle()
        server.keys.hosts_come.set()
        await server.settle()
        assert admission.waiting == 0
    assert server.log.rkeys == []
    assert server.dropped("pds", "host") == 2  # the label of all PDSes


async def test_what_waits_of_a_pds_that_is_replaced_is_in_the_cursor(
    account: Account, other: Account
) -> None:
    server = Server(upstreams=("a",), pds=("pds",))
    server.keys.known[OTHER_DID] = OWN
    server.keys.hosts |= {DID: "pds", OTHER_DID: "pds"}
    async with server.running() as admission:
        await server.take("pds", commit(1, account.create("1")))
        await server.offer("pds", commit(2, other.create("2"), OTHER_DID))
        admission.join("pds", "wss://pds:8443")
        await server.settle()
        assert admission.waiting == 1
        assert server.log.cursors == {"pds": SourceCursor(0, stored_to=2, unstored=(1,))}


async def test_an_account_that_moves_to_a_pds_is_taken(account: Account) -> None:
    server = Server("cid", upstreams=("a",), pds=("pds",))
    server.keys.hosts[DID] = "old.example"
    server.keys.coming_hosts[DID] = "pds"
    async with server.running():
        await server.take("pds", commit(1, account.create("1")))
    assert server.log.rkeys == ["1"]


async def test_a_pds_announces_changes_of_its_own_accounts_only(account: Account) -> None:
    """Else each PDS could have the keys of all accounts fetched again."""
    server = Server(upstreams=("a",), pds=("p",))
    elsewhere, unknown = OTHER_DID, "did:plc:" + "c" * 24
    server.keys.hosts |= {DID: "p", elsewhere: "q"}
    dids = (DID, elsewhere, unknown)

    def announced() -> list[str]:
        return [did for what, did in server.keys.asked if what == "announced"]

    async with server.running():
        await server.take("p", *(identity(number, did) for number, did in enumerate(dids, 1)))
        assert announced() == [DID]
        server.keys.asked.clear()
        await server.take("a", *(identity(number, did, "b.test") for number, did in enumerate(dids, 1)))
        assert announced() == [*dids]
    assert server.dropped("pds", "host") == 2


async def test_without_a_document_an_account_event_of_a_pds_is_dropped(account: Account) -> None:
    server = Server(upstreams=("a",), pds=("pds",))
    server.keys.known[DID] = OWN
    async with server.running():
        await server.take("pds", commit(1, account.create("1")), status(2, active=False, status="deleted"))
    assert server.log.rkeys == ["1"]
    assert server.dropped("pds", "host") == 1


# Where the states are in a database


DIDS = [f"did:plc:{letter * 24}" for letter in "cdefgh"]


@pytest.fixture
def accounts() -> list[Account]:
    return [Account(did=did) for did in DIDS]


def far(**settings: Any) -> Server:
    """Return a server that keeps two states itself; all others are loaded before they are needed."""
    limits = Limits(admission=AdmissionLimits(states_kept=2, accounts_per_turn=2))
    made = Server(log=FarLog(), limits=limits, **settings)
    made.keys.known |= dict.fromkeys((DID, OTHER_DID, *DIDS), OWN)
    return made


def each_creates(accounts: list[Account], first: int, rkey: str) -> list[Numbered]:
    numbered = enumerate(zip(DIDS, accounts, strict=True), first)
    return [commit(number, account.create(rkey), did) for number, (did, account) in numbered]


async def test_states_are_loaded_before_messages_are_judged(accounts: list[Account]) -> None:
    server, count = far(), len(DIDS)
    async with server.running() as admission:
        first = each_creates(accounts, 1, "1")
        await server.take("a", *first)
        for turn in 2, 3:
            await server.take("a", *each_creates(accounts, turn * count, str(turn)))
        await server.take("a", *first)
        assert server.verdicts == {"ok": 3 * count, "replay": count}
        # While frames are read, the log is asked for what is at hand, and for nothing else.
        assert isinstance(server.log, FarLog)
        server.log.at_hand = set()
        assert admission.knows(first[0][1]) is None
        server.log.at_hand = {compact_did(DIDS[0])}
        assert admission.knows(first[0][1])
        gone = [status(100 + number, did, False, "deleted") for number, did in enumerate(DIDS)]
        await server.take("a", *gone)
    assert server.log.rkeys == ["1"] * count + ["2"] * count + ["3"] * count + ["a"] * count
    assert (server.log.gaps, server.log.repos) == ([], {})


async def test_states_are_loaded_again_for_what_has_waited(account: Account, accounts: list[Account]) -> None:
    server = far()
    async with server.running():
        await server.take("a", commit(1, account.create("1")))
        del server.keys.known[DID]
        await server.take("a", commit(2, account.create("2")))
        await server.take("a", *each_creates(accounts, 3, "other"))
        server.keys.bring(DID)
        await server.settle()
    assert server.log.rkeys == ["1", *["other"] * len(DIDS), "2"]
    assert server.verdicts == {"ok": len(DIDS) + 2}


async def test_states_are_loaded_again_for_what_was_held(account: Account, accounts: list[Account]) -> None:
    server = far(upstreams=("a", "b"))
    async with server.running():
        one, _, three = (account.create(each) for each in "123")
        await server.take("a", commit(1, one))
        await server.take("a", commit(3, three))
        await server.take("a", *each_creates(accounts, 4, "other"))
        await server.passed(2.1)
    assert server.log.rkeys == ["1", *["other"] * len(DIDS), "s", "3"]
    assert server.verdicts == {"ok": len(DIDS) + 1, "gap": 1}


async def test_states_are_loaded_for_accounts_of_which_another_source_decides(
    accounts: list[Account],
) -> None:
    server = far(upstreams=("a", "b"))
    async with server.running():
        await server.take("a", *each_creates(accounts, 1, "1"))
        told = [status(number, did, False, "deleted") for number, did in enumerate(DIDS, 1)]
        await server.take("b", *told)
        assert server.log.rkeys == ["1"] * len(DIDS)
        assert isinstance(server.log, FarLog)
        server.log.at_hand = set()
        server.connected = ["b"]
        await server.passed(0.0)
        await server.passed(31.0)
        await server.settle()
    assert server.log.rkeys == ["1"] * len(DIDS) + ["a"] * len(DIDS)

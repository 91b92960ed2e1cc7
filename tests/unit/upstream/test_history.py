"""Which of the log's events are watched for after a fall, without a log: positions are places in a list."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from tests.builders import commit, like

from jetstream.model.event import Key
from jetstream.upstream.history import History
from jetstream.upstream.intake import Intake, Taken
from jetstream.upstream.seq_tracker import SeqTracker

WINDOW = 5


class Kept:
    """Keys at positions from 1 on, of which those below the floor are gone."""

    def __init__(self) -> None:
        self.keys: list[Key] = []
        self.floor = 0
        self.reads: list[tuple[int, int]] = []

    @property
    def tip(self) -> int:
        return len(self.keys)

    async def holds(self, keys: Collection[Key]) -> Mapping[Key, int]:
        return {key: at for at, key in enumerate(self.keys, 1) if at >= self.floor and key in keys}

    async def keys_from(self, position: int, stop: int) -> set[Key]:
        self.reads.append((position, stop))
        first = max(position, 1, self.floor)
        return set(self.keys[first - 1 : min(stop - 1, first - 1 + WINDOW)])


class Reader:
    """An intake and its history over a stand-in log."""

    def __init__(self, last: int | None) -> None:
        self.kept = Kept()
        self.intake = Intake(SeqTracker(last))
        self.history = History(self.kept, self.intake)

    def restart(self) -> None:
        """Begin again with the numbers that are stored."""
        sequence = self.intake.sequence
        self.intake = Intake(
            SeqTracker(sequence.last, sequence.unconfirmed, sequence.fell_from, resumed=True)
        )
        self.history = History(self.kept, self.intake)

    async def read(self, *seqs: int, together: int = 7) -> list[int]:
        """Read frames on a new connection; return the numbers of those that were taken."""
        return await self.read_frames([commit(seq) for seq in seqs], together)

    async def read_frames(self, left: list[bytes], together: int = 7) -> list[int]:
        """Read frames on a new connection; return the record keys of the commits that were taken."""
        self.intake.sequence.connected()
        taken: list[int] = []
        while left:
            await self.history.look()
            part = self.intake.take(left[:together])
            if part.asks:
                self.intake.settle(part, await self.kept.holds(part.asks))
            del left[: part.frames]
            taken += self._store(part)
        return taken

    def _store(self, part: Taken) -> list[int]:
        self.kept.keys += [event.key for event in part.events]
        return [int(event.rkey) for event in part.events]


async def test_the_log_is_not_read_while_numbers_rise() -> None:
    reader = Reader(0)
    assert await reader.read(*range(1, 50)) == [*range(1, 50)]
    assert (reader.kept.reads, reader.intake.landmarks) == ([], frozenset())


async def test_history_from_before_the_floor_is_taken_up_to_the_floor() -> None:
    for together in (1, 2, 7, 100):
        reader = Reader(0)
        await reader.read(*range(1, 101))
        reader.kept.floor = 41
        assert await reader.read(*range(1, 111), together=together) == [*range(1, 41), *range(101, 111)]
        assert reader.intake.sequence.last == 110


async def test_a_relay_that_leaves_frames_out_is_recognised_by_any_of_the_oldest() -> None:
    reader = Reader(0)
    await reader.read(*range(1, 101))
    reader.kept.floor = 41
    assert await reader.read(*range(1, 101, 2)) == [*range(1, 41, 2)]


async def test_what_the_log_forgot_in_the_middle_does_not_end_the_search() -> None:
    reader = Reader(0)
    await reader.read(*range(1, 101))
    reader.kept.keys[30:40] = []
    assert await reader.read(*range(1, 111)) == [*range(31, 41), *range(101, 111)]


async def test_history_from_before_a_live_start_after_other_events_is_recognised() -> None:
    reader = Reader(None)
    reader.kept.keys = [(b"did:plc:x", b"a.b.c", b"0", b"%d" % n) for n in range(50)]
    reader.history = History(reader.kept, reader.intake)
    await reader.read(*range(51, 101))
    assert await reader.read(*range(1, 111)) == [*range(1, 51), *range(101, 111)]


async def test_the_log_is_read_again_when_its_floor_rises_and_no_more_when_all_of_before_is_gone() -> None:
    reader = Reader(0)
    await reader.read(*range(1_001, 1_101))
    await reader.read(*range(1, 21))
    reads = len(reader.kept.reads)
    assert reads
    await reader.read(*range(21, 41))
    assert len(reader.kept.reads) == reads
    reader.kept.floor = 50
    await reader.read(*range(41, 51))
    assert len(reader.kept.reads) > reads
    reader.kept.floor = 110
    await reader.read(*range(51, 61))
    assert not reader.intake.sequence.may_recur
    assert reader.intake.landmarks == frozenset()
    assert reader.intake.sequence.follows(61)


async def test_a_frame_of_the_new_sequence_that_comes_again_does_not_bring_the_old_one_back() -> None:
    reader = Reader(900)
    await reader.read(*range(901, 911))
    new = [commit(seq, [like(5_000 + seq)]) for seq in range(1, 11)]
    assert await reader.read_frames(new[:3]) == [5_001, 5_002, 5_003]
    for _ in range(3):  # a relay that resends the frame of the cursor itself
        assert await reader.read_frames(new[2:3]) == []
        assert reader.intake.sequence.last == 3
    assert await reader.read_frames(new[2:]) == [*range(5_004, 5_011)]
    assert (reader.intake.sequence.last, reader.intake.sequence.fell_from) == (10, 910)


async def test_after_a_restart_all_of_the_log_is_watched_for_and_the_new_sequence_goes_on() -> None:
    reader = Reader(900)
    await reader.read(*range(901, 911))
    new = [commit(seq, [like(5_000 + seq)]) for seq in range(1, 11)]
    await reader.read_frames(new[:3])
    reader.restart()
    assert await reader.read_frames(new[1:]) == [*range(5_004, 5_011)]
    assert reader.intake.sequence.last == 10


async def test_old_records_under_new_numbers_do_not_bring_the_old_sequence_back() -> None:
    reader = Reader(900)
    await reader.read(*range(901, 911))
    new = [commit(seq, [like(5_000 + seq if seq % 5 else 900 + seq // 5)]) for seq in range(1, 26)]
    taken = await reader.read_frames(new)
    assert taken == [5_000 + seq for seq in range(1, 26) if seq % 5]
    assert reader.intake.sequence.last == 25


async def test_a_number_that_was_not_confirmed_is_never_the_cursor() -> None:
    reader = Reader(0)
    await reader.read(*range(1, 11))
    rogues = [commit(28_000_000_000 + seq, [like(seq)]) for seq in (11, 12, 13)]
    await reader.read_frames(rogues)
    reader.restart()
    assert reader.intake.sequence.fell_from is None
    assert await reader.read(*range(10, 21)) == [*range(14, 21)]
    assert reader.intake.sequence.last == 20


async def test_history_from_further_back_after_history_is_recognised() -> None:
    reader = Reader(None)
    reader.kept.keys = [(b"did:plc:x", b"a.b.c", b"0", b"%d" % n) for n in range(50)]
    reader.history = History(reader.kept, reader.intake)
    await reader.read(*range(51, 101))
    assert await reader.read(*range(21, 31)) == [*range(21, 31)]
    assert await reader.read(*range(1, 111)) == [*range(1, 21), *range(31, 51), *range(101, 111)]

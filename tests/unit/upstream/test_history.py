"""Which of the log's events are watched for after a fall, without a log: positions are places in a list."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping

from tests.builders import commit, like

from jetstream.model.event import Key
from jetstream.upstream.history import History
from jetstream.upstream.pipeline import DecodedBatch, Pipeline
from jetstream.upstream.seq_tracker import SeqTracker

WINDOW = 5


class Log:
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
    """A pipeline and its history over a stand-in log."""

    def __init__(self, last: int | None) -> None:
        self.log = Log()
        self.pipeline = Pipeline(SeqTracker(last), time.monotonic)
        self.history = History(self.log, self.pipeline)

    def restart(self) -> None:
        """Begin again with the numbers that are stored."""
        tracker = self.pipeline.tracker
        self.pipeline = Pipeline(
            SeqTracker(tracker.last, tracker.unconfirmed, tracker.fell_from, resumed=True),
            time.monotonic,
        )
        self.history = History(self.log, self.pipeline)

    async def read(self, *seqs: int, together: int = 7) -> list[int]:
        """Read frames on a new connection; return the numbers of those that were taken."""
        return await self.read_frames([commit(seq) for seq in seqs], together)

    async def read_frames(self, left: list[bytes], together: int = 7) -> list[int]:
        """Read frames on a new connection; return the record keys of the commits that were taken."""
        self.pipeline.tracker.connected()
        taken: list[int] = []
        while left:
            await self.history.update()
            part = self.pipeline.read(left[:together])
            if part.lookups:
                self.pipeline.resolve(part, await self.log.holds(part.lookups))
            del left[: part.frames]
            taken += self._store(part)
        return taken

    def _store(self, part: DecodedBatch) -> list[int]:
        self.log.keys += [event.key for event in part.events]
        return [int(event.rkey) for event in part.events]


async def test_the_log_is_not_read_while_numbers_rise() -> None:
    reader = Reader(0)
    assert await reader.read(*range(1, 50)) == [*range(1, 50)]
    assert (reader.log.reads, reader.pipeline.history_keys) == ([], frozenset())


async def test_history_from_before_the_floor_is_taken_up_to_the_floor() -> None:
    for together in (1, 2, 7, 100):
        reader = Reader(0)
        await reader.read(*range(1, 101))
        reader.log.floor = 41
        assert await reader.read(*range(1, 111), together=together) == [*range(1, 41), *range(101, 111)]
        assert reader.pipeline.tracker.last == 110


async def test_a_relay_that_leaves_frames_out_is_recognised_by_any_of_the_oldest() -> None:
    reader = Reader(0)
    await reader.read(*range(1, 101))
    reader.log.floor = 41
    assert await reader.read(*range(1, 101, 2)) == [*range(1, 41, 2)]


async def test_what_the_log_forgot_in_the_middle_does_not_end_the_search() -> None:
    reader = Reader(0)
    await reader.read(*range(1, 101))
    reader.log.keys[30:40] = []
    assert await reader.read(*range(1, 111)) == [*range(31, 41), *range(101, 111)]


async def test_history_from_before_a_live_start_after_other_events_is_recognised() -> None:
    reader = Reader(None)
    reader.log.keys = [(b"did:plc:x", b"a.b.c", b"0", b"%d" % n) for n in range(50)]
    reader.history = History(reader.log, reader.pipeline)
    await reader.read(*range(51, 101))
    assert await reader.read(*range(1, 111)) == [*range(1, 51), *range(101, 111)]


async def test_the_log_is_read_again_when_its_floor_rises_and_no_more_when_all_of_before_is_gone() -> None:
    reader = Reader(0)
    await reader.read(*range(1_001, 1_101))
    await reader.read(*range(1, 21))
    reads = len(reader.log.reads)
    assert reads
    await reader.read(*range(21, 41))
    assert len(reader.log.reads) == reads
    reader.log.floor = 50
    await reader.read(*range(41, 51))
    assert len(reader.log.reads) > reads
    reader.log.floor = 110
    await reader.read(*range(51, 61))
    assert not reader.pipeline.tracker.may_recur
    assert reader.pipeline.history_keys == frozenset()
    assert reader.pipeline.tracker.advance(61)


async def test_a_frame_of_the_new_sequence_that_comes_again_does_not_bring_the_old_one_back() -> None:
    reader = Reader(900)
    await reader.read(*range(901, 911))
    new = [commit(seq, [like(5_000 + seq)]) for seq in range(1, 11)]
    assert await reader.read_frames(new[:3]) == [5_001, 5_002, 5_003]
    for _ in range(3):  # a relay that resends the frame of the cursor itself
        assert await reader.read_frames(new[2:3]) == []
        assert reader.pipeline.tracker.last == 3
    assert await reader.read_frames(new[2:]) == [*range(5_004, 5_011)]
    assert (reader.pipeline.tracker.last, reader.pipeline.tracker.fell_from) == (10, 910)


async def test_after_a_restart_all_of_the_log_is_watched_for_and_the_new_sequence_goes_on() -> None:
    reader = Reader(900)
    await reader.read(*range(901, 911))
    new = [commit(seq, [like(5_000 + seq)]) for seq in range(1, 11)]
    await reader.read_frames(new[:3])
    reader.restart()
    assert await reader.read_frames(new[1:]) == [*range(5_004, 5_011)]
    assert reader.pipeline.tracker.last == 10


async def test_old_records_under_new_numbers_do_not_bring_the_old_sequence_back() -> None:
    reader = Reader(900)
    await reader.read(*range(901, 911))
    new = [commit(seq, [like(5_000 + seq if seq % 5 else 900 + seq // 5)]) for seq in range(1, 26)]
    taken = await reader.read_frames(new)
    assert taken == [5_000 + seq for seq in range(1, 26) if seq % 5]
    assert reader.pipeline.tracker.last == 25


async def test_a_number_that_was_not_confirmed_is_never_the_cursor() -> None:
    reader = Reader(0)
    await reader.read(*range(1, 11))
    outliers = [commit(28_000_000_000 + seq, [like(seq)]) for seq in (11, 12, 13)]
    await reader.read_frames(outliers)
    reader.restart()
    assert reader.pipeline.tracker.fell_from is None
    assert await reader.read(*range(10, 21)) == [*range(14, 21)]
    assert reader.pipeline.tracker.last == 20


async def test_history_from_further_back_after_history_is_recognised() -> None:
    reader = Reader(None)
    reader.log.keys = [(b"did:plc:x", b"a.b.c", b"0", b"%d" % n) for n in range(50)]
    reader.history = History(reader.log, reader.pipeline)
    await reader.read(*range(51, 101))
    assert await reader.read(*range(21, 31)) == [*range(21, 31)]
    assert await reader.read(*range(1, 111)) == [*range(1, 21), *range(31, 51), *range(101, 111)]

"""What is sent to a process that examines messages, and what it has not answered. Pure.

Both sides send pickled values, each after its length. The server sends a `Setup`, then lists of tasks. The
process sends True when it is ready, then a list of findings for each list of tasks, in order.

A process takes its parcels one after another. So the oldest one without an answer is the one that it was busy
with when it ended. A parcel of several tasks is then taken apart, and each of them is sent alone. A task that
ends a process while it is alone is to blame; the second time, it is refused. So no message can end the
server, or hold up the others for good.

A process that was killed (SIGKILL) may have been killed by anybody: by another program, by the system when
memory is short, or by the server since it was stopped. So that does not count, unless it happens to the same
task again and again.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from struct import Struct
from typing import Any, Final, NamedTuple

from jetstream.admission.examiners.examination import Finding, Task
from jetstream.limits import UpstreamLimits
from jetstream.verify.verdict import refused
from jetstream.verify_modes import Mode

# Called once for each place: where a finding belongs among those of the caller, and the finding.
Take = Callable[[int, Finding], None]
# What is before each value: its length in bytes. Both ends are on one machine and of one version.
HEAD: Final = Struct("<I")
_CRASH: Final = "examining it has ended a process %d times"


class Setup(NamedTuple):
    """How a process examines messages."""

    mode: Mode
    limits: UpstreamLimits
    # Seconds of CPU time that one list may take: above it the process ends itself, by SIGPROF. So it ends
    # although the server may be gone, and not because the machine is busy or the process was stopped.
    cpu_s: float


def packed(value: object) -> bytes:
    """Return a value as it is sent. Raises RecursionError for one that is nested too deeply."""
    data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    return HEAD.pack(len(data)) + data


def unpacked(data: bytes | memoryview) -> Any:
    """Return the value of bytes without their length. They are those of `packed`, of our own processes."""
    return pickle.loads(data)  # noqa: S301


class Parcel:
    """Tasks that are sent together. Raises RecursionError for a task that is nested too deeply to be sent.

    It is packed once, when it is made, and may be sent to several processes one after another.
    """

    __slots__ = ("data", "deaths", "kills", "places", "take", "tasks")

    def __init__(self, tasks: Sequence[Task], places: Sequence[int], take: Take) -> None:
        # The tasks; the place of each finding among those of the caller; and what takes the findings.
        self.tasks = tasks
        self.places = places
        self.take = take
        self.data = packed(tasks)  # as it is sent
        # How many processes have ended by themselves while they were busy with the only task, and how many
        # were killed.
        self.deaths = 0
        self.kills = 0

    def answer(self, findings: Sequence[Finding]) -> None:
        """Hand over the findings, which are in the order of the tasks."""
        for place, finding in zip(self.places, findings, strict=True):
            self.take(place, finding)

    def apart(self) -> list[Parcel]:
        """Return a parcel for each of the tasks."""
        return [
            Parcel([task], [place], self.take) for task, place in zip(self.tasks, self.places, strict=True)
        ]


class Outstanding:
    """The parcels that one process has not answered, the oldest first.

    `deaths_max` is how many processes may end, and `kills_max` how many may be killed, while they are busy
    with a task alone, until it is refused.
    """

    def __init__(self, deaths_max: int, kills_max: int) -> None:
        # Bytes of all parcels, as they are sent.
        self.bytes = 0
        # In the order in which they were sent, which is that of the answers.
        self._parcels: deque[Parcel] = deque()
        self._deaths_max = deaths_max
        self._kills_max = kills_max

    def __len__(self) -> int:
        """Return how many parcels have no answer."""
        return len(self._parcels)

    def __iter__(self) -> Iterator[Parcel]:
        """Iterate over the parcels, in the order in which they are to be sent."""
        return iter(self._parcels)

    def add(self, parcel: Parcel) -> None:
        """Add a parcel that is sent, now or when the process is ready."""
        self._parcels.append(parcel)
        self.bytes += len(parcel.data)

    def answered(self, findings: Sequence[Finding]) -> None:
        """Note the answer to the oldest parcel."""
        self._pop().answer(findings)

    def process_ended(self, *, killed: bool) -> None:
        """Decide what becomes of the parcels of a process that has ended, or was killed.

        The oldest one is taken apart, tried once more, or refused with `crash` if it is a task alone that
        has ended too many. What is left is for the next process.
        """
        if not self._parcels:
            return
        oldest = self._pop()
        if len(oldest.tasks) > 1:
            self._put_first(oldest.apart())
            return
        oldest.kills += killed
        oldest.deaths += not killed
        if oldest.deaths < self._deaths_max and oldest.kills < self._kills_max:
            self._put_first([oldest])
        else:
            ended = oldest.deaths + oldest.kills
            oldest.answer([Finding(refused("crash", _CRASH % ended), None, None)])

    def _pop(self) -> Parcel:
        """Remove the oldest parcel, and return it."""
        parcel = self._parcels.popleft()
        self.bytes -= len(parcel.data)
        return parcel

    def _put_first(self, parcels: Sequence[Parcel]) -> None:
        """Put parcels before all others, in this order."""
        self._parcels.extendleft(reversed(parcels))
        self.bytes += sum(len(parcel.data) for parcel in parcels)

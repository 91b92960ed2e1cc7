"""A process that examines, and one that examines and that some messages end; a server of such processes.

python tests/examining.py                 as `examiners.worker_main`, but see `deadly`
python tests/examining.py server COUNT    print the processes, then examine until SIGINT
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from jetstream.admission.examiners.examination import Finding, Task, examine
from jetstream.admission.examiners.pool import Examiners
from jetstream.admission.examiners.worker_main import main
from jetstream.limits import UpstreamLimits, WorkerLimits
from jetstream.metrics import Metrics
from jetstream.runtime import run, stop_on_signals
from jetstream.verify_modes import Mode

COMMAND = (str(Path(__file__).resolve()),)
# What the field `time` of a message does to its process.
KILLS, FAILS, HANGS, STOPS = "it kills", "it fails", "it hangs", "it stops"
# The same, with the file that counts it: three processes are killed, and the next one is not.
KILLED = "it is killed: "
QUICK = WorkerLimits(hang_s=0.4, cpu_s=0.1)


def deadly(task: Task, mode: Mode, limits: UpstreamLimits) -> Finding:
    time = task.fields.get("time")
    if time == KILLS:
        os.kill(os.getpid(), signal.SIGKILL)
    if time == STOPS:
        os.kill(os.getpid(), signal.SIGSTOP)
    if isinstance(time, str) and time.startswith(KILLED):
        be_killed(Path(time.removeprefix(KILLED)))
    assert time != FAILS
    while time == HANGS:
        pass
    return examine(task, mode, limits)


def be_killed(count: Path) -> None:
    with count.open("a") as file:
        file.write("x")
    if count.stat().st_size <= 3:
        os.kill(os.getpid(), signal.SIGKILL)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def serve(count: int, tasks: list[Task]) -> None:
    stopping = asyncio.Event()
    stop_on_signals(stopping.set)
    async with Examiners("full", count, Metrics().workers(), limits=QUICK, command=COMMAND) as examiners:
        say(json.dumps([worker.process.pid for worker in examiners.workers if worker.process]))
        hung = asyncio.create_task(examiners.examine([task for task in tasks if "time" in task.fields]))
        examined = 0
        while not stopping.is_set() or examined < 10:
            examined += len(await examiners.examine([task for task in tasks if "time" not in task.fields]))
            await asyncio.sleep(0)
        hung.cancel()
        say(json.dumps([worker.process.pid for worker in examiners.workers if worker.process]))
    say("done")


if __name__ == "__main__":
    if sys.argv[1:2] == ["server"]:
        # Messages that are refused at once, so that no fixture is needed.
        given = [Task("commit", {"repo": f"did:{n}", "rev": "3", "ops": []}) for n in range(20)]
        given += [Task("commit", {"repo": "did:0", "rev": "3", "ops": [], "time": HANGS})] * len(sys.argv[3:])
        run(serve(int(sys.argv[2]), given))
    else:
        main(deadly)

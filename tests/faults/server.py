"""A process under the shim that has imported everything, and forks whoever trains.

It reads jobs and writes endings, one line of JSON each; `tests.faults.launcher` is its other end.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

from tests.faults import command
from tests.faults.instants import Instants
from tests.faults.shim import Fault, Mode, Trace, arm, disarm
from tests.faults.training import Messages, import_everything, train

CRASHED = 70


def main() -> None:
    """Serve until there are no more jobs."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a child prints is no reply
    import_everything()
    gc.freeze()  # or collections in the children would copy the memory that they share
    for line in sys.stdin:
        job = json.loads(line)
        mode, at, error = job.pop("fault")
        if "command" in job["options"]:
            command.import_everything()
        replies.write(json.dumps(launch(fault=Fault(Mode(mode), at, error), **job)) + "\n")
    os._exit(0)  # an orderly end would complain of what is frozen


def launch(
    out: str, archive: str | None, world: int, rank: int, fault: Fault, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Start a training of `world` processes, with a fault in one of them, and wait for all.

    As under any launcher, the others are ended when one has died.

    Returns:
        How each process ended, by rank.
    """
    faults = [fault if position == rank else Fault() for position in range(world)]
    traces = [Trace() for _ in faults]
    reports = [os.memfd_create("report") for _ in faults]

    def training(position: int) -> int:
        return _train(Path(out), archive, faults[position], traces[position], reports[position], options)

    port = _free_port()
    children = {_fork(training, position, world, port): position for position in range(world)}
    endings: list[dict[str, Any]] = [{} for _ in faults]
    while children:
        child, status = os.wait()
        position = children.pop(child)
        endings[position] = {"status": os.waitstatus_to_exitcode(status)}
        if status:
            for other in children:
                os.kill(other, signal.SIGKILL)
    for ending, trace, report in zip(endings, traces, reports, strict=True):
        ending["calls"] = [astuple(call) for call in trace.take()]
        ending |= _taken(report)
    return endings


def _free_port() -> int:
    """Where the processes of a training may meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _fork(training: Callable[[int], int], rank: int, world: int, port: int) -> int:
    """A child that trains, and ends with the status that training returns."""
    child = os.fork()
    if child:
        return child
    status = CRASHED
    try:
        if world > 1:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        status = training(rank)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _train(out: Path, archive: str | None, fault: Fault, trace: Trace, report: int, options: dict[str, Any]) -> int:
    messages = Messages()
    instants = Instants(fault.at if fault.mode is Mode.INSTANT else 0)
    error = None
    arm(out.parent, fault, trace)
    if fault.mode is Mode.INSTANT:
        instants.start()
    try:
        if (recipe := options.pop("command", None)) is not None:
            command.run(out, Path(recipe))
        else:
            train(out, messages, None if archive is None else Path(archive), **options)
    except Exception as raised:
        error = {"type": type(raised).__name__, "text": str(raised)}
        if isinstance(raised, OSError):
            error |= {"number": raised.errno, "path": raised.filename and os.fsdecode(raised.filename)}
    finally:
        instants.stop()
        disarm()
    told = {"error": error, "messages": messages.lines, "instants": instants.count}
    os.write(report, json.dumps(told).encode())
    return 0 if error is None else 1


def _taken(report: int) -> dict[str, Any]:
    text = os.pread(report, os.fstat(report).st_size, 0)
    os.close(report)
    return json.loads(text) if text else {"error": None, "messages": [], "instants": 0}


if __name__ == "__main__":
    main()

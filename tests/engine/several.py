"""Real processes for the engine's tests, as torchrun would start them."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch

_CONTEXT = multiprocessing.get_context("forkserver" if sys.platform != "win32" else "spawn")
if sys.platform != "win32":
    _CONTEXT.set_forkserver_preload(["tests.engine.common", "kdengine.engine.engine", "kdengine.engine.fsdp"])


def device() -> str:
    """Where these processes compute: a GPU each where there are as many."""
    return "auto" if torch.cuda.device_count() >= int(os.environ.get("WORLD_SIZE", "1")) else "cpu"


def start(world: int, work: Callable[..., Any], *args: Any) -> list[tuple[Any, Any]]:
    """Start processes that run ``work(*args)``; each with the pipe through which its outcome comes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(world):
        receiver, sender = _CONTEXT.Pipe(duplex=False)
        process = _CONTEXT.Process(target=_run, args=(rank, world, port, sender, work, args))
        process.start()
        sender.close()
        started.append((process, receiver))
    return started


def outcome(process: Any, receiver: Any) -> tuple[str, Any]:
    """``("done", value)``, ``("failed", traceback)`` or ``("died", exit code)``."""
    try:
        said = receiver.recv()
    except EOFError:
        said = None
    process.join()
    return said or ("died", process.exitcode)


def in_processes(world: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What ``work(*args)`` returns in each of ``world`` processes."""
    outcomes = [outcome(*started) for started in start(world, work, *args)]
    for rank, (kind, value) in enumerate(outcomes):
        assert kind == "done", f"process {rank} {kind}: {value}\n" + "\n".join(str(text) for _, text in outcomes)
    return [value for _, value in outcomes]


def _run(rank: int, world: int, port: int, sender: Any, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    try:
        said = ("done", work(*args))
    except BaseException:
        said = ("failed", traceback.format_exc())
    sender.send(said)
    sender.close()
    if said[0] == "done":
        from kdengine.api.processes import join

        join().end()
    sys.stdout.flush()
    os._exit(0)

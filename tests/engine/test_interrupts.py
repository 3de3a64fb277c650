"""Real signals in every phase of a fit: what is under way is finished or undone, and nothing is lost."""

from __future__ import annotations

import gc
import os
import signal

import pytest
import torch

import kdengine
from kdengine._processes import is_running
from kdengine.engine import checkpoint
from kdengine.engine import engine as engine_module
from tests.engine.common import engine, items, mlp
from tests.engine.several import device, in_processes, outcome, start

CODES = {signal.SIGTERM: "SystemExit 143", signal.SIGINT: "KeyboardInterrupt None"}


class Signaller:
    """Sends its own process a signal in a phase of step 3, or of the evaluation after it."""

    kdengine_hook_version = 1
    kdengine_name = "signaller"

    def __init__(self, phase, number, times=1, rank=0):
        self.phase, self.number, self.times, self.rank = phase, number, times, rank
        self.step = 0

    def send(self, phase):
        if phase == self.phase and self.step >= 3 and self.rank == int(os.environ.get("RANK", "0")):
            self.phase = None
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)

    @kdengine.hookimpl
    def kdengine_on_fit_start(self, context):
        self.step = 3 if self.phase == "start" else 0
        self.send("start")

    @kdengine.hookimpl
    def kdengine_on_step_start(self, context):
        self.step = context.step

    @kdengine.hookimpl
    def kdengine_on_teacher_output(self, context):
        self.send("forward")

    @kdengine.hookimpl
    def kdengine_on_backward_end(self, context):
        self.send("backward")

    @kdengine.hookimpl
    def kdengine_on_step_end(self, context):
        self.send("step end")

    @kdengine.hookimpl
    def kdengine_on_evaluate_start(self, context):
        self.send("evaluation")

    @kdengine.hookimpl
    def kdengine_on_epoch_end(self, context):
        self.send("epoch end")

    def state_dict(self):
        self.send("save")
        return {}

    def load_state_dict(self, state):
        pass


PHASES = ("start", "forward", "backward", "step end", "evaluation", "epoch end", "save")


def train(out, plugins=(), strategy="ddp", **options):
    """How a fit of a student with dropout ended, and its bits."""
    student = mlp(dropout=0.2)
    trained = engine(
        student, out=out, seed=1, plugins=plugins, checkpoint_every=3, ema=0.9, metrics={"top1": "top1"},
        device=device(), strategy=strategy, **options,
    )  # fmt: skip
    try:
        trained.fit(kdengine.loader(items(), 8, seed=2), kdengine.loader(items(), 5, shuffle=False), epochs=2,
                    resume="auto")  # fmt: skip
    except BaseException as error:
        return f"{type(error).__bases__[0].__name__ if isinstance(error, SystemExit) else type(error).__name__} " + str(
            getattr(error, "code", None)
        )
    return [p.tolist() for p in student.state_dict().values()]


def train_and_signal(out, phase, number, times=1, rank=0):
    return train(out, [Signaller(phase, number, times, rank)])


def train_and_signal_while_compiling(out, number):
    signaller = Signaller("compile", number)

    def compile_and_signal(graph, _inputs):
        signaller.step = 3
        signaller.send("compile")
        return graph.forward

    engine_module.compile_in_place = lambda student: student.compile(backend=compile_and_signal)
    return train(out, compile=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return {world: in_processes(world, train, tmp_path_factory.mktemp("whole") / str(world))[0] for world in (1, 2)}


QUICK = {("evaluation", signal.SIGINT), ("save", signal.SIGTERM)}


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        pytest.param(
            phase, number, marks=[] if (phase, number) in QUICK else pytest.mark.slow, id=f"{phase}-{number.name}"
        )
        for phase in PHASES
        for number in CODES
    ],
)
def test_a_signal_leaves_a_checkpoint_from_which_the_same_bits_come(tmp_path, uninterrupted, phase, number):
    (ended,) = in_processes(1, train_and_signal, tmp_path / "run", phase, number)
    check_left(ended, number, tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_signal_while_the_student_is_compiled_waits_for_the_step(tmp_path, uninterrupted, number):
    (ended,) = in_processes(1, train_and_signal_while_compiling, tmp_path / "run", number)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000001"]
    check_left(ended, number, tmp_path / "run", uninterrupted)


def check_left(ended, number, out, uninterrupted):
    """It ended with the signal's code, left a checkpoint and nothing half done, and goes on to the same bits."""
    assert ended == CODES[number]
    damaged = []
    latest = checkpoint.find_latest(out / "checkpoints", on_damaged=lambda *found: damaged.append(found))
    assert latest is not None
    assert damaged == []
    assert not list(out.rglob(".tmp-*"))
    assert in_processes(1, train, out)[0] == uninterrupted[1]


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_second_signal_leaves_at_once(tmp_path, number):
    (started,) = start(1, train_and_signal, tmp_path / "run", "forward", number, 2)
    assert outcome(*started) == ("died", 128 + number)


@pytest.mark.parametrize(
    "phase", ["forward", *(pytest.param(p, marks=pytest.mark.slow) for p in ("evaluation", "save"))]
)
def test_all_processes_leave_when_one_of_them_is_signalled(tmp_path, uninterrupted, phase):
    ended = in_processes(2, train_and_signal, tmp_path / "run", phase, signal.SIGTERM, 1, 1)
    assert ended == ["SystemExit 143"] * 2
    assert in_processes(2, train, tmp_path / "run")[0] == uninterrupted[2]


def test_a_fit_without_a_run_directory_leaves_its_student_usable():
    student = mlp()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        engine(student, plugins=[Signaller("forward", signal.SIGINT)]).fit(kdengine.loader(items(), 4), epochs=2)
    assert signal.getsignal(signal.SIGINT) is before
    assert all(torch.isfinite(p).all() and p.grad is None for p in student.parameters())


def test_handlers_of_the_program_are_left_alone(tmp_path):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("mine"))
    try:
        plugins = [Signaller("forward", signal.SIGTERM)]
        assert engine(plugins=plugins).fit(kdengine.loader(items(), 8), epochs=1).status == "finished"
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == ["mine"]


class Hanging(torch.utils.data.Dataset):
    """Says so to whoever waits for it, and gives nothing more, from some item on."""

    random = False

    def __init__(self, note, at, signals):
        self.data, self.note, self.at, self.signals = items(), note, at, signals
        self.main = os.getpid()

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        if self.note is not None and index >= self.at:
            self.note.write_text(str(os.getpid()))
            while self.at == 16 and not self.note.with_name("second-step").exists():
                os.sched_yield()  # the worker reads ahead
            for _ in range(self.signals):
                os.kill(self.main, signal.SIGTERM)
            os.read(os.pipe()[0], 1)
        return self.data[index]


class SecondStep:
    kdengine_hook_version = 1

    def __init__(self, folder):
        self.folder = folder

    @kdengine.hookimpl
    def kdengine_on_step_end(self, context):
        if context.fit.step == 2:
            (self.folder / "second-step").touch()


def train_on_a_hanging_loader(out, note, at, signals, hangs_in_evaluation=False):
    torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.1  # how long torch waits for a worker before it ends it
    workers = 0 if note is None else 1
    loader = kdengine.loader(Hanging(note if not hangs_in_evaluation else None, at, signals), 8, shuffle=False,
                             workers=0 if hangs_in_evaluation else workers)  # fmt: skip
    test = torch.utils.data.DataLoader(
        Hanging(note if hangs_in_evaluation else None, at, signals), 8, num_workers=workers * hangs_in_evaluation
    )
    student = mlp(dropout=0.2)
    try:
        engine(student, out=out, seed=1, metrics={"top1": "top1"}, plugins=[SecondStep(out.parent)]).fit(
            loader, test, epochs=2, resume="auto"
        )
    except SystemExit as error:
        code = error.code
    else:
        return [p.tolist() for p in student.parameters()]
    del loader, test
    gc.collect()  # as the end of a program does
    return code


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "in_evaluation", "step"),
    [(16, False, 2), (0, False, None), (8, True, 4)],
    ids=["step", "first", "evaluation"],
)
def test_a_signal_leaves_a_loader_that_hangs_with_a_checkpoint_and_no_worker(tmp_path, at, in_evaluation, step):
    note = tmp_path / "worker"
    (code,) = in_processes(1, train_on_a_hanging_loader, tmp_path / "run", note, at, 1, in_evaluation)
    assert code == 143
    assert not is_running(int(note.read_text()))
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == ([] if step is None else [step])
    went_on, whole = (
        in_processes(1, train_on_a_hanging_loader, tmp_path / name, None, at, 0, in_evaluation)[0]
        for name in ("run", "whole")
    )
    assert went_on == whole


def hang_in_a_step(out, note):
    """A loader's worker is stuck while the main process, which is not waiting for it, gets two signals."""
    loader = kdengine.loader(Hanging(note, 24, 0), 8, shuffle=False, workers=1)

    class Impatient:
        kdengine_hook_version = 1

        @kdengine.hookimpl
        def kdengine_on_backward_end(self, context):
            while context.step == 2 and not note.exists():
                os.sched_yield()
            for _ in range(2 * (context.step == 2)):
                os.kill(os.getpid(), signal.SIGTERM)

    engine(out=out, plugins=[Impatient()]).fit(loader, epochs=1)


def test_a_second_signal_takes_a_stuck_worker_with_it(tmp_path):
    (started,) = start(1, hang_in_a_step, tmp_path / "run", tmp_path / "worker")
    assert outcome(*started) == ("died", 143)
    assert not is_running(int((tmp_path / "worker").read_text()))

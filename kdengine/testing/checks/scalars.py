"""Arguments that take schedules."""

from __future__ import annotations

from kdengine.api import Progress, Schedule
from kdengine.testing.case import Case, evaluate
from kdengine.testing.trial import Trial, promises


class Halving(Schedule):
    """From a value to half of it (from 0 to 0.5), over the whole of training."""

    def __init__(self, start: float) -> None:
        self.start, self.end = start, start / 2 if start else 0.5

    def value(self, progress: Progress) -> float:
        """The point on the line."""
        return self.start + (self.end - self.start) * progress.fraction


@promises("scalars", "an argument typed Scalar takes a schedule and follows it")
def scalars(case: Case, trial: Trial) -> None:
    """Every ``Scalar`` argument that has a value follows a schedule."""
    starts = {name: case.number(name) for name, argument in case.known.items() if argument.is_scalar}
    numbers = {name: start for name, start in starts.items() if start is not None}
    if not numbers:
        trial.skip("no argument that is typed Scalar has a number")
    for name, start in numbers.items():
        trial.tries(f"{name} from {start:g} to {Halving(start).end:g}")
        _follow(case, trial, name, Halving(start))


def _follow(case: Case, trial: Trial, name: str, schedule: Halving) -> None:
    loss = case.make(**{name: schedule})
    read = getattr(loss, name, None)
    trial.require(
        type(read) is float,
        f"self.{name} is {read!r} where {name} is a schedule; assign the argument to it, then it is a float",
    )
    case.objective(loss).advance(Progress(step=1, steps=2))
    got, batch = getattr(loss, name), case.batch()
    trial.require(got == schedule.end, f"self.{name} is {got!r} at the schedule's end, not {schedule.end!r}")
    scheduled = evaluate(case, loss, batch)
    plain = evaluate(case, case.make(**{name: schedule.end}), batch)
    what = f"with {name} scheduled to {schedule.end:g}, not given as {schedule.end:g}, the loss"
    trial.close(what, [scheduled.total], [plain.total], 1e-12)

"""Every method on the digits: accuracy over seeds, and time and memory of a step beside those of ``kd``.

    python -m tests.benchmarks.methods [--seeds 3] [--only NAME ...]

It writes docs/methods.json, from which docs/methods.md is made. Time wants a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomli_w
import torch

from kdengine.api.batch import Batch
from kdengine.engine.batching import to_batch
from kdengine.engine.engine import Engine
from kdengine.engine.random import seed_all
from kdengine.host import Host
from kdengine.recipe.data import make_data
from kdengine.recipe.load import Source, read
from kdengine.recipe.plan import Plan, make_plan
from kdengine.recipe.run import Options, run, student_fit
from kdengine.recipe.teacher import get_teacher
from tests.benchmarks.memory import peak_bytes
from tests.benchmarks.stopwatch import in_turn, ratio
from tests.docs import method_table

RECIPES = Path(__file__).with_suffix(".toml")
ROUNDS = 15


def recipes() -> dict[str, dict[str, Any]]:
    """A whole recipe for each method: what all share, and what the method puts in its place."""
    given = tomllib.loads(RECIPES.read_text(encoding="utf-8"))
    return {name: {**copy.deepcopy(given["recipe"]), **method} for name, method in given["methods"].items()}


def plan_of(name: str, tree: dict[str, Any]) -> Plan:
    """The checked plan of a method's recipe."""
    source = Source(title=name, text=tomli_w.dumps(tree), folder=Path())
    recipe, problems = read(source)
    return make_plan(recipe, Host(autoload=False), source, problems)


def train(name: str, tree: dict[str, Any], seeds: int, folder: Path) -> dict[str, Any]:
    """Summary of a run over seeds."""
    return run(plan_of(name, tree), Options(folder / name, seeds=seeds, say=lambda _: None))


class Step:
    """One optimizer step of a method, over and over on one batch."""

    def __init__(self, name: str, tree: dict[str, Any]) -> None:
        plan = plan_of(name, tree)
        data = make_data(plan)
        seed_all(0)
        teacher = get_teacher(plan, data, [])
        self.engine, loader = student_fit(plan, data, teacher, seed=0, out=None, loggers=[], alone=False)
        self.batch: Batch = to_batch(next(iter(loader)))

    def __call__(self) -> None:
        """Take the step."""
        self.engine.train_step([copy.copy(self.batch)])

    def memory(self) -> int:
        """Bytes at the peak of a step, and those that the losses keep."""
        self()
        return peak_bytes(self, "cpu") + held(self.engine)


def held(engine: Engine) -> int:
    """Bytes of what the losses keep: projectors, memory banks."""
    own = [tensor for loss in engine.losses.values() for tensor in (*loss.parameters(), *loss.buffers())]
    return sum(tensor.nbytes for tensor in own)


def cost(step: Step, reference: Step) -> dict[str, float]:
    """Time of a step over that of ``kd``, side by side, and memory beyond it."""
    times = in_turn({"method": step, "kd": reference}, rounds=ROUNDS)
    return {
        "cost": round(ratio(times, "method", "kd"), 3),
        "memory": round((step.memory() - reference.memory()) / 2**20, 3),
    }


def measure(names: Sequence[str], seeds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Accuracy and cost of the methods of these names, and of the student alone."""
    every = recipes()
    measured: dict[str, Any] = {"seeds": seeds, "methods": {}}
    with tempfile.TemporaryDirectory() as folder:
        reference = Step("kd", every["kd"])
        for name in names:
            tree = every[name]
            own_student = tree["student"] != every["kd"]["student"]
            summary = train(name, {**tree, "baseline": own_student or name == "kd"}, seeds, Path(folder))
            row = measured["methods"][name] = {"top1": summary["student"]["metrics"]["top1"]}
            if name == "kd":
                measured["alone"] = summary["baseline"]["metrics"]["top1"]
                measured["teacher"] = summary["teacher"]["metrics"]["top1"]
            elif own_student:
                row["alone"] = summary["baseline"]["metrics"]["top1"]
            row |= cost(Step(name, tree), reference)
            say(f"{name:14s} {method_table.percent(row['top1'])}  {row}")
    return measured


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write docs/methods.json; with --only, the rows of these names in it."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.methods", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these methods; kd is always one of them")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    every = list(recipes())
    if unknown := set(options.only) - set(every):
        parser.error(f"no method is called {', '.join(sorted(unknown))}; known: {', '.join(every)}")
    names = [name for name in every if not options.only or name in ("kd", *options.only)]
    measured = measure(names, options.seeds, lambda line: print(line, flush=True))
    before = method_table.read() if options.only and method_table.DATA.exists() else {"methods": {}}
    kept = {name: row for name, row in before["methods"].items() if name in every}
    rows = {**kept, **measured["methods"]}
    measured["methods"] = {name: rows[name] for name in every if name in rows}
    measured |= {"date": datetime.now(UTC).date().isoformat(), "torch": torch.__version__.partition("+")[0]}
    method_table.DATA.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    method_table.write()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

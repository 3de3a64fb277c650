"""Draw the results of the loss benchmark: `python -m tests.benchmarks.plot kd_loss.json`."""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

COLOURS = {"kdengine": "#0b6e4f", "eager": "#8a8a8a", "torch.compile": "#c77d0a", "liger": "#6a4c93"}


def draw(results: dict[str, Any], path: Path) -> None:
    """One panel per dtype and objective: time over the floor's against the number of classes."""
    cases = [entry["extra_info"] for entry in results["benchmarks"] if "seconds" in entry.get("extra_info", {})]
    panels = sorted({(case["dtype"], case["objective"]) for case in cases}, reverse=True)
    if not panels:
        return
    mpl.use("Agg")
    figure, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 3.4), sharey=True, squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        chosen = [case for case in cases if (case["dtype"], case["objective"]) == panel and case["rows"] > 128]
        chosen = sorted(chosen + _small(cases, panel, chosen), key=lambda case: case["classes"])
        for name, colour in COLOURS.items():
            points = [
                (c["classes"], c["seconds"][name] / c["seconds"]["floor"]) for c in chosen if name in c["seconds"]
            ]
            if points:
                axis.plot(*zip(*points, strict=True), "o-", color=colour, label=name, markersize=3.5, linewidth=1.4)
        axis.axhline(1, color="#444444", linewidth=0.8, linestyle=":")
        axis.set(xscale="log", yscale="log", title=", ".join(panel), xlabel="classes")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("time / time of moving the bytes")
    axes[0][-1].legend(frameon=False, fontsize=8)
    figure.suptitle(f"loss and gradient, {cases[0]['device']}, torch {cases[0]['torch']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def _small(cases: list[dict[str, Any]], panel: tuple[str, str], chosen: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cases of few rows whose number of classes has no larger case."""
    have = {case["classes"] for case in chosen}
    return [c for c in cases if (c["dtype"], c["objective"]) == panel and c["classes"] not in have]


def main() -> None:
    """Draw beside the file that is named."""
    path = Path(sys.argv[1])
    draw(json.loads(path.read_text(encoding="utf-8")), path.with_suffix(".png"))


if __name__ == "__main__":
    main()

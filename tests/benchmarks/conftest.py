import json
from pathlib import Path

from .plot import draw


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Draw the plot beside the JSON file that was asked for."""
    target = config.getoption("benchmark_json")
    if target:
        draw(json.loads(json.dumps(output_json, default=str)), Path(target).with_suffix(".png"))

"""The layout of a run directory: the name of everything that a fit or a run writes there."""

from typing import Final

SUMMARY: Final = "summary.json"
RECORDS: Final = "metrics.jsonl"
STEPS: Final = "steps.jsonl"
STUDENT: Final = "student.safetensors"
CHECKPOINTS: Final = "checkpoints"
RECIPE: Final = "recipe.toml"
BASELINE: Final = "baseline"
DISAGREEMENTS: Final = "disagreements.json"
DISAGREEMENT_IMAGES: Final = "disagreements.safetensors"
REPORT: Final = "report.html"
SEEDS: Final = "seeds.json"
LOCK: Final = "run.lock"

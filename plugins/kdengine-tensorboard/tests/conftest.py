"""Lets the tests run from a checkout, where the package need not be installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

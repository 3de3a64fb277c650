"""The targets of test_fuzz.py under a fuzzer that follows the code's branches.

    python -m tests.security.fuzz_atheris [TARGET] [OPTION...] [FOLDER...]

TARGET is one of those in targets.py; ``checkpoint`` when left out. Options and folders of inputs are libFuzzer's, such
as ``-max_total_time=60``. An input that fails is written as ``crash-...`` and run again by giving its path. Install the
fuzzer with ``pip install atheris`` (Linux and macOS).
"""

from __future__ import annotations

import importlib
import sys
import warnings


def main() -> None:
    """Fuzz one target until it fails or the time is over."""
    try:
        import atheris
    except ImportError:
        sys.exit("the fuzzer is not installed: pip install atheris (Linux and macOS)")
    warnings.simplefilter("ignore")
    arguments = sys.argv[1:]
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "checkpoint"
    import torch  # before the instrumentation: only the package is of interest

    torch.set_num_threads(1)
    with atheris.instrument_imports(include=["kdengine"]):
        targets = importlib.import_module("tests.security.targets")
    if name not in targets.TARGETS:
        sys.exit(f"there is no target {name!r}; known: {', '.join(targets.TARGETS)}")
    # A change takes dozens of bytes: to begin with short inputs, as libFuzzer does, would change next to nothing.
    atheris.Setup([sys.argv[0], "-len_control=0", "-max_len=256", *arguments], targets.TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()

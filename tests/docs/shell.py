"""A shell in which the documentation's commands mean what they say, without a network."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

BORROW = "import site; site.addsitedir({site!r})\n"

INSTALL = """#!/bin/sh
command="$1"; shift
case "$command" in
  install|wheel) exec "{python}" -m pip "$command" -q --no-deps --no-build-isolation --no-index "$@" ;;
  *) exec "{python}" -m pip "$command" "$@" ;;
esac
"""


class Shell:
    """A virtual environment that sees the packages of this one, in which a package may be installed and removed.

    Args:
        folder: where it is made; commands run in ``folder / "work"``.
    """

    def __init__(self, folder: Path) -> None:
        environment, self.work = folder / "environment", folder / "work"
        self.work.mkdir()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
        python = environment / "bin" / "python"
        own = next(environment.glob("lib/python*/site-packages"))
        (own / "borrowed.pth").write_text(BORROW.format(site=sysconfig.get_paths()["purelib"]))
        scripts = {
            "pip": INSTALL.format(python=python),
            "kdengine": f'#!/bin/sh\nexec "{python}" -m kdengine "$@"\n',
            "pytest": f'#!/bin/sh\nexec "{python}" -m pytest -p no:cacheprovider "$@"\n',
        }
        for name, text in scripts.items():
            script = python.parent / name
            script.write_text(text)
            script.chmod(0o755)
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("KDENGINE", "PYTEST", "_KD"))},
            "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
            "KDENGINE_CACHE": str(folder / "cache"),
            "KDENGINE_LIBRARIES": os.environ["KDENGINE_LIBRARIES"],
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }

    def run(self, commands: str) -> str:
        """Run commands, one a line, and stop at the first that fails.

        Returns:
            what they printed, on both streams.
        """
        done = subprocess.run(
            ["sh", "-e"],
            input=commands,
            cwd=self.work,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}"
        return done.stdout

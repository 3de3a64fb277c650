"""The logger."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdengine.api import ConfigurationError, Logger, RunInfo


class TensorBoard(Logger):
    """Writes every number of a record as a scalar ``<kind>/<name>`` to TensorBoard's event files.

    The files lie in ``<directory>/<name of the fit>``. Event files cannot be cut, so a resume hides the events after
    the checkpoint instead, and a fresh fit those of an earlier one (TensorBoard's ``purge_step``).

    Args:
        directory: folder of the event files; a relative one lies in the run directory.
        flush_seconds: seconds after which events are on the disk at the latest.
    """

    def __init__(self, directory: str = "tensorboard", flush_seconds: float = 30.0) -> None:
        self.directory = directory
        self.flush_seconds = flush_seconds
        self._writer: Any = None
        self._folder = Path()
        self._last = -1  # the last step with a record
        self._loaded = False

    def start(self, run: RunInfo) -> None:
        """Open an event file.

        Raises:
            ConfigurationError: there is no run directory, and ``directory`` is relative.
        """
        self._close()
        base = Path(self.directory).expanduser()
        if run.out is None and not base.is_absolute():
            raise ConfigurationError(
                f"logger 'tensorboard' has no place for {self.directory!r}: this run writes nothing. "
                "Give the run a directory (out), or the logger an absolute directory"
            )
        self._folder = (base if run.out is None else run.out / base) / run.name
        if not self._loaded:  # a fresh fit, or a checkpoint made without this logger
            self._last = run.step if run.step else -1
        self._loaded = False
        self._open()

    def log(self, record: Mapping[str, Any], *, step: int, kind: str) -> None:
        """Write the record's numbers."""
        self._last = max(self._last, step)
        for name, value in record.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def finish(self, status: str) -> None:
        """Write what is left and close the file."""
        self._close()

    def state_dict(self) -> dict[str, Any]:
        """The last step with a record; everything up to it is written when this returns."""
        if self._writer is not None:
            self._writer.flush()
        return {"last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Hide what was logged after the checkpoint: now if a file is open, else when the fit starts."""
        self._last = state["last"]
        if self._writer is None:
            self._loaded = True
        else:
            self._close()
            self._open()

    def _open(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=self._last + 1, flush_secs=self.flush_seconds)

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

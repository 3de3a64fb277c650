"""The report: one HTML file that shows what a run, or a comparison of runs, has found.

The file needs nothing beside it: no network, no script. Making it needs the optional extra ``report``.
"""

from kdengine.cli.report.page import write_report

__all__ = ["write_report"]

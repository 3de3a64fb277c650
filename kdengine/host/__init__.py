"""Plugins: discovery, validation, component lookup and compiled dispatch.

:class:`Host` is the entry: it knows builtins by dotted name, installed plugins by the entry-point group ``kdengine``,
and whatever a run names. It gives the run its components and a :class:`Dispatch` for the loop.
"""

from kdengine.host.component import Component
from kdengine.host.dispatch import ROLES, Dispatch, TraceRow
from kdengine.host.host import Host
from kdengine.host.lookup import KINDS
from kdengine.host.plugin import Plugin

__all__ = ["KINDS", "ROLES", "Component", "Dispatch", "Host", "Plugin", "TraceRow"]

"""The plugins that come with kdengine, by dotted name: they offer components and never act."""

BUILTINS = (
    "kdengine.losses",
    "kdengine.schedules",
    "kdengine.loggers",
    "kdengine.metrics",
    "kdengine.models",
    "kdengine.data",
    "kdengine.optimizers",
    "kdengine.projectors",
    "kdengine.teachers",
)

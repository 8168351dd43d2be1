"""Measuring trained models: metrics, intervals, and runs loaded back from their folders."""

from softless.evaluation.evaluate import Evaluation, evaluate, forward_all
from softless.evaluation.intervals import Interval, bootstrap_mean, paired_bootstrap, wilson
from softless.evaluation.metrics import Metrics, measure
from softless.evaluation.run import LoadedRun, load_run

__all__ = [
    "Evaluation",
    "Interval",
    "LoadedRun",
    "Metrics",
    "bootstrap_mean",
    "evaluate",
    "forward_all",
    "load_run",
    "measure",
    "paired_bootstrap",
    "wilson",
]

"""Callbacks: files and logs of a run besides checkpoints, averages of the weights, progress and early stopping."""

from eomt.training.callbacks.curves import CurvePlot
from eomt.training.callbacks.ema import WeightAverage
from eomt.training.callbacks.listening import Listening
from eomt.training.callbacks.progress import EarlyStop, Progress, ProgressLines
from eomt.training.callbacks.report import Report
from eomt.training.callbacks.run_files import MetricsFile, PredictionPictures, SavePredictions
from eomt.training.callbacks.trackers import Trackers

__all__ = [
    "CurvePlot",
    "EarlyStop",
    "Listening",
    "MetricsFile",
    "PredictionPictures",
    "Progress",
    "ProgressLines",
    "Report",
    "SavePredictions",
    "Trackers",
    "WeightAverage",
]

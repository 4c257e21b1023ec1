"""Callbacks: the files that a run leaves besides checkpoints, averages of the weights, early stopping."""

from eomt.training.callbacks.curves import CurvePlot
from eomt.training.callbacks.early_stopping import EarlyStop
from eomt.training.callbacks.ema import WeightAverage
from eomt.training.callbacks.metrics_file import MetricsFile
from eomt.training.callbacks.pictures import PredictionPictures
from eomt.training.callbacks.predictions import SavePredictions
from eomt.training.callbacks.progress import Progress

__all__ = [
    "CurvePlot",
    "EarlyStop",
    "MetricsFile",
    "PredictionPictures",
    "Progress",
    "SavePredictions",
    "WeightAverage",
]

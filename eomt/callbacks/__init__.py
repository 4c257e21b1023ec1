"""What a run leaves behind besides weights: numbers, curves, pictures; and a clean stop."""

from eomt.callbacks.best import keep_best
from eomt.callbacks.curves import CurvePlot
from eomt.callbacks.early_stopping import EarlyStop
from eomt.callbacks.ema import WeightAverage
from eomt.callbacks.last import LastCheckpoint
from eomt.callbacks.metrics_file import MetricsFile
from eomt.callbacks.pictures import PredictionPictures
from eomt.callbacks.progress import Progress
from eomt.callbacks.ranks import RankWatch
from eomt.callbacks.results import SavePredictions

__all__ = [
    "CurvePlot",
    "EarlyStop",
    "LastCheckpoint",
    "MetricsFile",
    "PredictionPictures",
    "Progress",
    "RankWatch",
    "SavePredictions",
    "WeightAverage",
    "keep_best",
]

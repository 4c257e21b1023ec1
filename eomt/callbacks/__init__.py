"""What a run leaves behind besides weights: numbers, curves, pictures; and a clean stop."""

from eomt.callbacks.curves import CurvePlot
from eomt.callbacks.metrics_file import MetricsFile
from eomt.callbacks.pictures import PredictionPictures
from eomt.callbacks.progress import Progress
from eomt.callbacks.results import SavePredictions
from eomt.callbacks.stop import GracefulStop

__all__ = ["CurvePlot", "GracefulStop", "MetricsFile", "PredictionPictures", "Progress", "SavePredictions"]

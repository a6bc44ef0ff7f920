"""The one schema of `config.yaml`: every key, its range, its default and its meaning; see `config` for its reading."""

from beco.schema.base import Section, nearest
from beco.schema.dataset import Coco, Dataset, Shapes
from beco.schema.networks import Encoder, Network
from beco.schema.optimisation import ClassifierOptimiser, Crop, Optimiser, Schedule, SegmenterOptimiser
from beco.schema.stage1 import Cam, Classifier, Crf, Import, Irn, Labels, Source
from beco.schema.stage2 import InferenceCrf, Mix, Prediction, Training
from beco.schema.whole import Comparison, Compute, Config, Experiment, Quality, Shards

__all__ = [
    "Cam",
    "Classifier",
    "ClassifierOptimiser",
    "Coco",
    "Comparison",
    "Compute",
    "Config",
    "Crf",
    "Crop",
    "Dataset",
    "Encoder",
    "Experiment",
    "Import",
    "InferenceCrf",
    "Irn",
    "Labels",
    "Mix",
    "Network",
    "Optimiser",
    "Prediction",
    "Quality",
    "Schedule",
    "Section",
    "SegmenterOptimiser",
    "Shapes",
    "Shards",
    "Source",
    "Training",
    "nearest",
]

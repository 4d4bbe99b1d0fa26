"""Images from any source, seeded augmentation, samplers and loaders."""

from crossdistill.data.augment import EvalTransform, TrainTransform, resolve_augment
from crossdistill.data.held import HeldSource
from crossdistill.data.loader import EvalLoader, TrainLoader
from crossdistill.data.open import open_source
from crossdistill.data.prepare import prepare_image
from crossdistill.data.source import CorruptImage, Source, Splits
from crossdistill.data.splits import Selection, select_training

__all__ = [
    "CorruptImage",
    "EvalLoader",
    "EvalTransform",
    "HeldSource",
    "Selection",
    "Source",
    "Splits",
    "TrainLoader",
    "TrainTransform",
    "open_source",
    "prepare_image",
    "resolve_augment",
    "select_training",
]

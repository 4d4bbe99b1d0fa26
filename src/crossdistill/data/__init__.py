"""Images from any source, seeded augmentation, samplers and loaders."""

from crossdistill.data.augmentation.transform import EvalTransform, TrainTransform, resolve_augment
from crossdistill.data.held import HeldSource
from crossdistill.data.loader import EvalLoader, TrainLoader
from crossdistill.data.open import open_source
from crossdistill.data.prepare import prepare_image
from crossdistill.data.shards.stream import Stream, select_stream
from crossdistill.data.shards.stream_loader import StreamEvalLoader, StreamLoader, eval_loader
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
    "Stream",
    "StreamEvalLoader",
    "StreamLoader",
    "TrainLoader",
    "TrainTransform",
    "eval_loader",
    "open_source",
    "prepare_image",
    "resolve_augment",
    "select_stream",
    "select_training",
]

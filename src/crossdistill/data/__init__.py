"""Images from any source, seeded augmentation, samplers and loaders."""

from crossdistill.data.augmentation.multi_view import MultiViewTransform
from crossdistill.data.augmentation.transform import EvalTransform, TrainTransform, resolve_augment
from crossdistill.data.augmentation.view_sizes import resolve_views
from crossdistill.data.held import HeldSource
from crossdistill.data.loader import EvalLoader, TrainLoader
from crossdistill.data.open import open_labelled, open_source
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
    "MultiViewTransform",
    "Selection",
    "Source",
    "Splits",
    "Stream",
    "StreamEvalLoader",
    "StreamLoader",
    "TrainLoader",
    "TrainTransform",
    "eval_loader",
    "open_labelled",
    "open_source",
    "prepare_image",
    "resolve_augment",
    "resolve_views",
    "select_stream",
    "select_training",
]

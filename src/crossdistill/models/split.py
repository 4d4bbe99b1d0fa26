"""Cutting by tracing: the network's own forward, split into plain functions where a single tensor is alive.

Blocks stay whole while tracing, so their own control flow, hooks, checkpointing and sharding are untouched. The
pieces are functions of the live network, not modules: copies, moves and weight averages need nothing special.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from torch import Tensor, fx, nn

from crossdistill.contracts import Outputs
from crossdistill.models.cutter import CannotCut, classifier_names, opened_at
from crossdistill.models.points import ENOUGH_STAGES, Kind, Point, choose, kind_of
from crossdistill.models.segment import Segment, between
from crossdistill.models.trace import Measured, depth, measure, single_tensor_cuts, trace
from crossdistill.models.views import Size, at_size, reads_channels_last, view

OPENING_LEVELS = (0, 1, 2, 3, 99)
"""How many layers of modules to look into, one attempt after the other; 99 is all of them."""

PROBE_SIZE = (256, 192)
"""Large, so that no map shrinks to a point, and oblong, so that channels are never taken for rows."""


class Split:
    """A network as a row of segments, one row for train and one for eval mode."""

    def __init__(self, points: Sequence[Point], segments: dict[bool, tuple[Segment, ...]]) -> None:
        self.points = tuple(points)
        self.segments = segments

    def whole(self, net: nn.Module, images: Tensor) -> Outputs:
        """One forward pass with everything on the way."""
        return self._run(net, images, 0, [])

    def until(self, net: nn.Module, images: Tensor, stage: int) -> Tensor:
        """The first ``stage`` segments."""
        tensor = images
        for segment in self.segments[net.training][:stage]:
            tensor = segment.run(net, tensor)
        return tensor

    def resume(self, net: nn.Module, feature: Tensor, stage: int) -> Outputs:
        """The segments after ``stage``."""
        return self._run(net, feature, stage, [feature])

    def _run(self, net: nn.Module, tensor: Tensor, start: int, stages: list[Tensor]) -> Outputs:
        *body, head = self.segments[net.training][start:]
        for segment in body:
            tensor = segment.run(net, tensor)
            stages.append(tensor)
        logits, embedding = head.run(net, tensor)
        return Outputs(logits, embedding, tuple(stages))


def split(net: nn.Module, image_shape: tuple[int, int, int]) -> Split:
    """Cut a network by tracing, looking no deeper than it takes to find three stages.

    Args:
        net: any classifier whose ``forward(images)`` returns logits.
        image_shape: (channels, height, width) of the images it is meant for.

    Raises:
        CannotCut: its forward cannot be traced, or a single tensor never carries all there is.
    """
    best: Split | None = None
    reasons: list[str] = []
    for level in OPENING_LEVELS:
        try:
            found = _split_at(net, image_shape, opened_at(net, level))
        except CannotCut as reason:
            reasons.append(str(reason))
            continue
        if best is None or len(found.points) > len(best.points):
            best = found
        if len(best.points) >= ENOUGH_STAGES:
            break
    if best is None:
        raise CannotCut("; ".join(dict.fromkeys(reasons)))
    return best


def _split_at(net: nn.Module, image_shape: tuple[int, int, int], opened: frozenset[str]) -> Split:
    graphs = {training: trace(net, opened, training=training) for training in (True, False)}
    measured = {training: _checked_measure(net, graphs[training], image_shape, training) for training in graphs}
    points = choose(_points(net, graphs, measured[False], image_shape))
    if not points:
        raise CannotCut("no cut with one tensor that has positions")
    points = [_at_nominal_size(point, measured[False], image_shape[1:]) for point in points]
    label = type(net).__name__
    return Split(
        points,
        {
            training: _segments(net, graph, points, measured[training], f"{label} {'train' if training else 'eval'}")
            for training, graph in graphs.items()
        },
    )


def _checked_measure(net: nn.Module, graph: fx.Graph, image_shape: tuple[int, int, int], training: bool) -> Measured:
    try:
        return measure(net, graph, image_shape, training=training)
    except Exception as error:  # the plain forward runs, so the graph is not the same as the forward
        raise CannotCut(f"its graph does not run: {error}") from error


def _points(
    net: nn.Module, graphs: dict[bool, fx.Graph], nominal: Measured, image_shape: tuple[int, int, int]
) -> list[Point]:
    """The cuts that both modes share, viewed at a size where every stride can be told."""
    in_train = {node.name for node, _ in single_tensor_cuts(graphs[True])}
    cuts = [pair for pair in single_tensor_cuts(graphs[False]) if pair[0].name in in_train]
    shapes, size = _probe(net, graphs[False], image_shape[0]) or (nominal.shapes, image_shape[1:])
    cuts = [(node, following) for node, following in cuts if node.name in shapes]
    hint = reads_channels_last([shapes[node.name] for node, _ in cuts], size)
    prefix = int(getattr(net, "num_prefix_tokens", 0))
    return [
        Point(
            node.name,
            shape := shapes[node.name],
            depth(node, following),
            _kind(net, node),
            view(shape, size, num_prefix_tokens=prefix, channels_last=hint),
        )
        for node, following in cuts
    ]


def _kind(net: nn.Module, node: fx.Node) -> Kind:
    if node.op == "call_module":
        return kind_of(net.get_submodule(str(node.target)))
    return "pass" if node.target is operator.getitem else "primitive"  # a slice drops prefix tokens


def _probe(net: nn.Module, graph: fx.Graph, channels: int) -> tuple[dict[str, tuple[int, ...]], Size] | None:
    try:
        return measure(net, graph, (channels, *PROBE_SIZE), training=False).shapes, PROBE_SIZE
    except Exception:  # a network of one fixed size says so in whatever way its authors chose
        return None


def _at_nominal_size(point: Point, nominal: Measured, size: Size) -> Point:
    shape = nominal.shapes[point.key]
    return replace(point, shape=shape, view=at_size(point.view, shape, size) if point.view else None)


def _segments(
    net: nn.Module, graph: fx.Graph, points: Sequence[Point], measured: Measured, label: str
) -> tuple[Segment, ...]:
    by_name = {node.name: node for node in graph.nodes}
    ends = [next(node for node in graph.nodes if node.op == "placeholder"), *(by_name[point.key] for point in points)]
    body = [
        between(graph, start, (end,), copy_first=start.name in measured.overwritten, label=f"{label}, stage {number}")
        for number, (start, end) in enumerate(pairwise(ends), start=1)
    ]
    results = _results(net, graph)
    order = list(graph.nodes)
    if order.index(results[1]) < order.index(ends[-1]):
        raise CannotCut("the tensor that enters the classifier is computed before the last stage ends")
    copy_first = ends[-1].name in measured.overwritten
    return (*body, between(graph, ends[-1], results, copy_first=copy_first, label=f"{label}, head"))


def _results(net: nn.Module, graph: fx.Graph) -> tuple[fx.Node, fx.Node]:
    """The nodes of the logits and of the tensor that enters the classifier."""
    output = next(node for node in graph.nodes if node.op == "output").args[0]
    calls = {str(node.target): node for node in graph.nodes if node.op == "call_module"}
    for name in classifier_names(net):
        if name in calls and isinstance(output, fx.Node):
            embedding = calls[name].args[0]
            if isinstance(embedding, fx.Node):
                return output, embedding
    raise CannotCut("its forward does not end in a classifier that returns one tensor of logits")

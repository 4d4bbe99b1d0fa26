"""Cutting by tracing: the network's own forward, split into plain functions where a single tensor is alive.

Blocks stay whole while tracing, so their own control flow, hooks, checkpointing and sharding are untouched. The
pieces are functions of the live network, not modules: copies, moves and weight averages need nothing special.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from crossdistill.contracts import Outputs, StageSpec
from crossdistill.errors import InputError
from crossdistill.models.cuts import VALUES, depth, owner, recomputable, signatures, single_tensor_cuts
from crossdistill.models.cutter import CannotCut, classifier_names, opened_at, parents
from crossdistill.models.points import ENOUGH_STAGES, Kind, Point, choose, kind_of
from crossdistill.models.segment import Segment, between
from crossdistill.models.shaped import ShapedTracer
from crossdistill.models.trace import Measured, Tracer, measure, trace
from crossdistill.models.views import Size, at_size, views_of

OPENING_LEVELS = (0, 1, 2, 3, 99)
"""How many layers of modules to look into, one attempt after the other; 99 is all of them."""

PROBE_SIZE = (256, 192)
"""Large, so that no map shrinks to a point, and oblong, so that channels are never taken for rows."""

ImageShape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Program:
    """One mode's forward pass: up to the end of each stage, and from the images and the end of each stage to the end.

    Each of ``rest`` returns the ends of the stages still to come, then logits and embedding.
    """

    until: tuple[Segment, ...]
    rest: tuple[Segment, ...]


class Split:
    """A network as functions of its images or of the tensor that ends a stage.

    Args:
        points: the ends of the stages.
        programs: one for train and one for eval mode.
        image_shape: the only shape ``(C, H, W)`` that the functions hold for; None where they hold for any.
    """

    def __init__(self, points: Sequence[Point], programs: dict[bool, Program], image_shape: ImageShape | None) -> None:
        self.points = tuple(points)
        self.programs = programs
        self.image_shape = image_shape
        self.looked_everywhere = True
        """False where some modules could not be looked into, so that there may be more cuts than were found."""

    def whole(self, net: nn.Module, images: Tensor) -> Outputs:
        """One forward pass with everything on the way."""
        self._check(images)
        *stages, logits, embedding = self.programs[net.training].rest[0].run(net, images)
        return Outputs(logits, embedding, tuple(stages))

    def until(self, net: nn.Module, images: Tensor, stage: int) -> Tensor:
        """The forward pass as far as the end of a stage."""
        self._check(images)
        (feature,) = self.programs[net.training].until[stage - 1].run(net, images)
        return feature  # type: ignore[no-any-return]

    def resume(self, net: nn.Module, feature: Tensor, stage: int) -> Outputs:
        """The forward pass from the end of a stage."""
        *stages, logits, embedding = self.programs[net.training].rest[stage].run(net, feature)
        return Outputs(logits, embedding, (feature, *stages))

    def _check(self, images: Tensor) -> None:
        if self.image_shape is not None and images.shape[1:] != self.image_shape:
            raise InputError(
                f"images of shape {tuple(images.shape)}",
                f"(B, {', '.join(map(str, self.image_shape))}): this network was staged for that size",
                "build it again with the image_size of these images",
            )


def split(net: nn.Module, image_shape: ImageShape, names: Sequence[str] | None = None) -> Split:
    """Cut a network by tracing, looking no deeper than it takes to find three stages.

    Shapes stay symbolic, so that the pieces take images of any size; where that finds less, they become numbers. A
    network in which a single tensor never carries all there is has no stages.

    Args:
        net: any classifier whose ``forward(images)`` returns logits.
        image_shape: (channels, height, width) of the images it is meant for.
        names: modules whose outputs end the stages, in order; None finds them.

    Raises:
        CannotCut: its forward cannot be traced, or a named module's output is not all that the rest needs.
    """
    best: Candidate | None = None
    reasons: list[str] = []
    enough = ENOUGH_STAGES if names is None else len(names)
    for shaped, opened in itertools.product((False, True), _openings(net, names)):
        try:
            found = _candidate(net, image_shape, opened, names, shaped=shaped)
        except CannotCut as reason:
            reasons.append(str(reason))
            continue
        if best is None or len(found.points) > len(best.points):
            best = found
        if len(best.points) >= enough:
            break
    if best is None:
        raise CannotCut("; ".join(dict.fromkeys(reasons)))
    cutter = _assemble(net, best, image_shape)
    cutter.looked_everywhere = not reasons
    return cutter


@dataclass(frozen=True, slots=True)
class Candidate:
    """Both modes' graphs, and the cuts chosen in them."""

    graphs: dict[bool, fx.Graph]
    points: list[Point]
    shaped: bool


def _openings(net: nn.Module, names: Sequence[str] | None) -> list[frozenset[str]]:
    if names is not None:
        return [_around(net, names)]
    return list(dict.fromkeys(opened_at(net, level) for level in OPENING_LEVELS))


def _around(net: nn.Module, names: Sequence[str]) -> frozenset[str]:
    """The containers of the named modules and of the classifier; the named ones stay whole."""
    opened = {parent for name in [*names, *classifier_names(net)] for parent in parents(name)}
    return frozenset(opened - set(names))


def _candidate(
    net: nn.Module,
    image_shape: ImageShape,
    opened: frozenset[str],
    names: Sequence[str] | None,
    *,
    shaped: bool,
) -> Candidate:
    """The cuts found at one opening."""
    dtype = next((parameter.dtype for parameter in net.parameters()), torch.float32)

    def graph(training: bool) -> fx.Graph:
        return trace(net, ShapedTracer(opened, image_shape, dtype) if shaped else Tracer(opened), training=training)

    in_eval = graph(False)
    _results(net, in_eval)
    in_train = graph(True)
    places, places_in_train = signatures(in_eval), signatures(in_train)
    shared = {
        node.name for node, _ in single_tensor_cuts(in_train) if places_in_train[node.name] == places.get(node.name)
    }
    cuts = [(node, following) for node, following in single_tensor_cuts(in_eval) if node.name in shared]
    shapes, size = _shapes(net, in_eval, image_shape, shaped=shaped)
    found = _points(net, [pair for pair in cuts if pair[0].name in shapes], shapes, size)
    points = choose(found) if names is None else _named(found, names)
    return Candidate({False: in_eval, True: in_train}, points, shaped)


def _assemble(net: nn.Module, found: Candidate, image_shape: ImageShape) -> Split:
    measured = {
        training: _checked_measure(net, graph, image_shape, training) for training, graph in found.graphs.items()
    }
    points = [_at_nominal_size(point, measured[False], image_shape[1:]) for point in found.points]
    label = type(net).__name__
    programs = {
        training: _program(net, graph, points, measured[training], f"{label} {'train' if training else 'eval'}")
        for training, graph in found.graphs.items()
    }
    return Split(points, programs, image_shape if found.shaped else None)


def _named(found: Sequence[Point], names: Sequence[str]) -> list[Point]:
    index = {str(point.module): index for index, point in enumerate(found) if point.view is not None}
    missing = [name for name in names if name not in index]
    if missing:
        raise CannotCut(f"after {missing[0]!r} the network needs more than one tensor with positions")
    ran = [name for name in index if name in names]
    if ran != list(names):
        raise CannotCut(f"they run in the order {', '.join(ran)}")
    return [found[index[name]] for name in names]


def _checked_measure(net: nn.Module, graph: fx.Graph, image_shape: ImageShape, training: bool) -> Measured:
    try:
        return measure(net, graph, image_shape, training=training)
    except Exception as error:  # the plain forward runs, so the graph is not the same as the forward
        raise CannotCut(f"its graph does not run: {error}") from error


def _points(
    net: nn.Module, cuts: Sequence[tuple[fx.Node, fx.Node]], shapes: dict[str, tuple[int, ...]], size: Size
) -> list[Point]:
    """The cuts outside the head as points."""
    views = views_of([shapes[node.name] for node, _ in cuts], size, int(getattr(net, "num_prefix_tokens", 0)))
    owners = [owner(node) for node, _ in cuts]
    head = _head(net, list(zip(owners, views, strict=True)))
    return [
        Point(
            node.name,
            shapes[node.name],
            depth(node, following),
            _kind(net, node),
            stage,
            module=str(node.target) if node.op == "call_module" else None,
        )
        for (node, following), stage, name in zip(cuts, views, owners, strict=True)
        if head is None or head not in (name, *parents(name))
    ]


def _head(net: nn.Module, views: Sequence[tuple[str, StageSpec | None]]) -> str | None:
    """The outermost module that holds the classifier and keeps one stride throughout, given each cut's module."""
    for name in classifier_names(net)[:1]:
        for container in parents(name):
            inside = [container in (owner, *parents(owner)) for owner, _ in views]
            stages = [stage for (_, stage), within in zip(views, inside, strict=True) if within and stage]
            strides = {stage.stride for stage in stages if stage.grid != (1, 1)}  # pooled, it has none
            if not all(inside) and len(strides) <= 1:
                return container
    return None


def _kind(net: nn.Module, node: fx.Node) -> Kind:
    if node.op == "call_module":
        return kind_of(net.get_submodule(str(node.target)))
    return "pass" if node.target is operator.getitem else "primitive"  # a slice drops prefix tokens


def _shapes(
    net: nn.Module, graph: fx.Graph, image_shape: ImageShape, *, shaped: bool
) -> tuple[dict[str, tuple[int, ...]], Size]:
    """The shape at each node for two images, and their (height, width): where possible one that tells every stride."""
    if shaped:
        values = {node.name: node.meta[VALUES][0] for node in graph.nodes if VALUES in node.meta}
        shapes = {name: tuple(value.shape) for name, value in values.items() if isinstance(value, Tensor)}
        return shapes, image_shape[1:]
    try:
        return measure(net, graph, (image_shape[0], *PROBE_SIZE), training=False).shapes, PROBE_SIZE
    except Exception:  # a network of one fixed size says so in whatever way its authors chose
        return _checked_measure(net, graph, image_shape, False).shapes, image_shape[1:]


def _at_nominal_size(point: Point, nominal: Measured, size: Size) -> Point:
    shape = nominal.shapes[point.key]
    stage = at_size(point.view, shape, size) if point.view else None
    return replace(point, shape=shape, view=stage)


def _program(net: nn.Module, graph: fx.Graph, points: Sequence[Point], measured: Measured, label: str) -> Program:
    by_name = {node.name: node for node in graph.nodes}
    images = next(node for node in graph.nodes if node.op == "placeholder")
    ends = [by_name[point.key] for point in points]
    results = _results(net, graph)
    order = list(graph.nodes)
    if ends and order.index(results[1]) < order.index(ends[-1]):
        raise CannotCut("the tensor that enters the classifier is computed before the last stage ends")
    again = recomputable(graph)

    def piece(start: fx.Node, wanted: Sequence[fx.Node], what: str) -> Segment:
        overwritten = measured.overwritten
        return between(graph, start, wanted, again=again, overwritten=overwritten, label=f"{label}, {what}")

    return Program(
        until=tuple(piece(images, [end], f"until stage {number}") for number, end in enumerate(ends, start=1)),
        rest=tuple(
            piece(start, [*ends[number:], *results], f"from stage {number}")
            for number, start in enumerate([images, *ends])
        ),
    )


def _results(net: nn.Module, graph: fx.Graph) -> tuple[fx.Node, fx.Node]:
    """The nodes of the logits and of the tensor that enters the classifier."""
    output = next(node for node in graph.nodes if node.op == "output").args[0]
    calls = {str(node.target): node for node in graph.nodes if node.op == "call_module"}
    for name in classifier_names(net):
        if name in calls and isinstance(output, fx.Node):
            embedding = next(iter([*calls[name].args, *calls[name].kwargs.values()]), None)
            if isinstance(embedding, fx.Node):
                return output, embedding
    raise CannotCut("its forward does not end in a classifier that returns one tensor of logits")

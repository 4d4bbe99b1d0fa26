"""Cutting by replaying: run the real forward and leave it early, or enter it late.

The fallback for networks that cannot be traced. To leave at a module's output, a hook raises; to enter there, the
forward runs from the start with everything before the module on the meta device, where it costs nothing, and a hook
puts the given tensor in the module's place. Every cut is verified when it is made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from crossdistill.contracts import Outputs
from crossdistill.models.cutter import CannotCut, classifier_names, opened_at, parents
from crossdistill.models.dry_run import BATCH_SIZE, dry_run, forked, mode, slots
from crossdistill.models.points import ENOUGH_STAGES, Point, choose, kind_of
from crossdistill.models.views import Size, views_of

MOST_ATTEMPTS = 6
"""Choices of cuts that are verified at one level before it is given up."""

OPENING_LEVELS = (0, 1, 2)
"""How many layers of modules to look into, beyond sequences and lists of modules."""


class _Left(Exception):
    """Carries the tensor out of a forward pass that is left early."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@dataclass(frozen=True, slots=True)
class Entry:
    """A module whose output ends a stage, and the tensors that only what runs before it reads."""

    module: str
    unused: frozenset[str]


class Replay:
    """A network run with hooks at the ends of its stages."""

    def __init__(
        self, points: Sequence[Point], entries: Sequence[Entry], classifier: str, image_shape: tuple[int, int, int]
    ) -> None:
        self.points, self.entries = tuple(points), tuple(entries)
        self.classifier, self.image_shape = classifier, image_shape

    def whole(self, net: nn.Module, images: Tensor) -> Outputs:
        """One forward pass with everything on the way."""
        return self._run(net, images, 0, [])

    def until(self, net: nn.Module, images: Tensor, stage: int) -> Tensor:
        """The forward pass, left by an exception at the end of the stage."""

        def leave(module: nn.Module, inputs: Any, output: Tensor) -> None:
            raise _Left(output)

        with net.get_submodule(self.entries[stage - 1].module).register_forward_hook(leave):
            try:
                net(images)
            except _Left as left:
                return left.tensor
        raise RuntimeError(f"module {self.entries[stage - 1].module!r} did not run")

    def resume(self, net: nn.Module, feature: Tensor, stage: int) -> Outputs:
        """The forward pass, with the part up to the end of the stage on the meta device."""
        entry = self.entries[stage - 1]
        images = torch.empty(len(feature), *self.image_shape, device="meta", dtype=_dtype(net))
        tensors = slots(net)
        on_meta = {name: tensors[name].detach().to("meta") for name in entry.unused}

        def enter(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            return feature.clone()  # what follows may overwrite its input

        with net.get_submodule(entry.module).register_forward_hook(enter):
            return self._run(net, images, stage, [feature], on_meta)

    def _run(
        self, net: nn.Module, images: Tensor, start: int, stages: list[Tensor], lent: dict[str, Tensor] | None = None
    ) -> Outputs:
        embeddings: list[Tensor] = []

        def tap(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            stages.append(output)
            return output.clone()

        def before_classifier(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
            embeddings.append(next(iter([*inputs, *named.values()])))

        with ExitStack() as hooks:
            for entry in self.entries[start:]:
                hooks.enter_context(net.get_submodule(entry.module).register_forward_hook(tap))
            classifier = net.get_submodule(self.classifier)
            hooks.enter_context(classifier.register_forward_pre_hook(before_classifier, with_kwargs=True))
            logits = functional_call(net, lent, (images,), tie_weights=False) if lent else net(images)
        return Outputs(logits, embeddings[0], tuple(stages))


@dataclass(frozen=True, slots=True)
class _Call:
    """One module's run: its name, the shape of its output and the identity of that tensor."""

    name: str
    shape: tuple[int, ...]
    identity: int


def replay(net: nn.Module, image_shape: tuple[int, int, int], names: Sequence[str] | None = None) -> Replay:
    """Cut a network at the outputs of its modules, keeping only cuts that a real forward pass confirms.

    A network without any such cut is run as a whole, with no stages.

    Args:
        net: any classifier whose ``forward(images)`` returns logits.
        image_shape: (channels, height, width) of the images it is meant for.
        names: modules whose outputs end the stages, in order; None finds them.

    Raises:
        CannotCut: it has no classifier module, or a named module's output is not all that the rest needs.
    """
    order = _calls(net, image_shape)
    ran = {call.name for call in order}
    classifiers = [name for name in classifier_names(net) if name in ran]
    if not classifiers:
        raise CannotCut("no classifier module runs in its forward")
    best = Replay([], [], classifiers[0], image_shape)
    if names is not None:
        return _named(net, order, names, best)
    for level in OPENING_LEVELS:
        found = _replay_at(net, order, opened_at(net, level), best)
        if len(found.points) > len(best.points):
            best = found
        if len(best.points) >= ENOUGH_STAGES:
            break
    return best


def _named(net: nn.Module, order: Sequence[_Call], names: Sequence[str], uncut: Replay) -> Replay:
    opened = frozenset(parent for name in names for parent in parents(name))
    points = {point.key: point for point in _points(net, order, opened, uncut.image_shape) if point.view is not None}
    entries: list[Entry] = []
    for name in names:
        entry = _verified(net, points[name], order, uncut) if name in points else None
        if entry is None:
            raise CannotCut(f"after {name!r} the network needs more than one tensor with positions")
        entries.append(entry)
    ran = [name for name in points if name in names]
    if ran != list(names):
        raise CannotCut(f"they run in the order {', '.join(ran)}")
    return Replay([points[name] for name in names], entries, uncut.classifier, uncut.image_shape)


def _replay_at(net: nn.Module, order: Sequence[_Call], opened: frozenset[str], uncut: Replay) -> Replay:
    """The chosen cuts at one level, chosen again without those that turn out not to be exact."""
    points = _points(net, order, opened, uncut.image_shape)
    for _ in range(MOST_ATTEMPTS):
        chosen = choose(points)
        entries = [_verified(net, point, order, uncut) for point in chosen]
        if all(entries):
            return Replay(chosen, [entry for entry in entries if entry], uncut.classifier, uncut.image_shape)
        failed = {point.key for point, entry in zip(chosen, entries, strict=True) if entry is None}
        points = [point for point in points if point.key not in failed]
    return uncut


def _calls(net: nn.Module, image_shape: tuple[int, int, int]) -> list[_Call]:
    """Every module's run in order of completion, in eval mode."""
    names = {module: name for name, module in net.named_modules() if name}

    def record(network: nn.Module, images: Tensor) -> list[_Call]:
        calls: list[_Call] = []
        kept: list[Tensor] = []  # so that no identity is used twice

        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            shape = tuple(output.shape) if isinstance(output, Tensor) else ()
            kept.append(output)
            calls.append(_Call(names[module], shape, id(output)))

        with ExitStack() as hooks:
            for module in names:
                hooks.enter_context(module.register_forward_hook(note))
            network(images)
        return calls

    return dry_run(net, record, image_shape)


def _points(
    net: nn.Module, order: Sequence[_Call], opened: frozenset[str], image_shape: tuple[int, int, int]
) -> list[Point]:
    """Modules that run once and are not inside another one that is a whole block."""
    opened |= {name for name, module in net.named_modules() if isinstance(module, nn.ModuleList)}
    counts = Counter(call.name for call in order)
    size: Size = image_shape[1:]
    candidates: dict[int, _Call] = {}  # by tensor: the module that made it, not those that only pass it on
    depths: dict[int, int] = {}
    for call in order:
        if call.shape and counts[call.name] == 1 and all(parent in opened for parent in parents(call.name)):
            candidates.setdefault(call.identity, call)
            depths[call.identity] = min(call.name.count("."), depths.get(call.identity, len(order)))
    prefix = int(getattr(net, "num_prefix_tokens", 0))
    views = views_of([call.shape for call in candidates.values()], size, prefix)
    return [
        Point(
            call.name,
            call.shape,
            depths[call.identity],
            kind_of(net.get_submodule(call.name)),
            stage,
            module=call.name,
        )
        for call, stage in zip(candidates.values(), views, strict=True)
    ]


def _verified(net: nn.Module, point: Point, order: Sequence[_Call], uncut: Replay) -> Entry | None:
    """The entry at which until and resume give the full forward bit for bit in both modes, if there is one."""
    for unused in _unused_candidates(net, point.key, order):
        entry = Entry(point.key, unused)
        cutter = Replay([point], [entry], uncut.classifier, uncut.image_shape)
        if all(_is_exact(net, cutter, training) for training in (False, True)):
            return entry
    return None


def _unused_candidates(net: nn.Module, cut: str, order: Sequence[_Call]) -> Iterator[frozenset[str]]:
    """Tensors of the modules that have finished at the cut; then also those held by the modules around it."""
    finished = next(index for index, call in enumerate(order) if call.name == cut)
    later = {call.name for call in order[finished + 1 :]}
    done = {call.name for call in order[: finished + 1]} - later
    owned = list(slots(net))
    # parts that never run themselves (tables, indices) are done with the module that holds them
    of_done = frozenset(name for name in owned if done & set(parents(name)) and name.rpartition(".")[0] not in later)
    yield of_done
    around = {"", *parents(cut)}
    yield of_done | {name for name in owned if name.rpartition(".")[0] in around}


def _dtype(net: nn.Module) -> torch.dtype:
    """The number type of the network's images: under autocast what comes out of it may have another."""
    return next((parameter.dtype for parameter in net.parameters()), torch.float32)


def _is_exact(net: nn.Module, cutter: Replay, training: bool) -> bool:
    device = next((tensor.device for tensor in net.parameters()), torch.device("cpu"))
    images = torch.rand(BATCH_SIZE, *cutter.image_shape, generator=torch.Generator().manual_seed(0))
    images = images.to(device, _dtype(net))

    def run(call: Callable[[nn.Module], Tensor | None]) -> Tensor | None:
        network = deepcopy(net)  # batch statistics change in train mode
        with mode(network, training), torch.no_grad(), forked(device):
            torch.manual_seed(0)
            return call(network)

    def in_two(network: nn.Module) -> Tensor | None:
        return cutter.resume(network, cutter.until(network, images, 1), 1).logits

    try:
        expected, actual = run(lambda network: network(images)), run(in_two)
    except Exception:  # tensors on two devices, or whatever else this network makes of the attempt
        return False
    if expected is None or actual is None:
        return False
    # without data nothing can be confirmed
    return device.type != "meta" and torch.equal(expected, actual)

"""What the rooms agree on: a teacher gives signals, a bridge makes networks comparable, an objective compares.

Nothing here does any work. A method, a teacher or a model that keeps these contracts fits every other part.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

Layout = Literal["NCHW", "NHWC", "NLC"]
"""How a stage's tensor is laid out: channel-first map, channel-last map, or tokens ``(B, L, C)``."""

Family = Literal["cnn", "transformer", "mlp"]

Signal = Literal["logits", "embedding", "stages", "modules"]
"""What a method may ask of a teacher; ``modules`` is the live network itself."""

UNLABELLED = -1
"""The target of a sample without a label: cross-entropy skips it, distillation does not."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """How images must be prepared for one model: size ``(height, width)`` in pixels, channels, normalisation."""

    image_size: tuple[int, int]
    num_channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = 0.875
    interpolation: str = "bicubic"


@dataclass(frozen=True, slots=True)
class StageSpec:
    """How to view the raw tensor of one stage.

    ``grid`` is (height, width) in positions; ``num_prefix_tokens`` counts class, distillation and register
    tokens in front of the ``grid[0] * grid[1]`` patch tokens (0 for maps). Patch tokens lie row by row of the grid,
    unless they were dealt out ``num_unrolls`` times over 2 x 2 heaps, as Hiera does to pool and attend quickly.
    """

    channels: int
    stride: int
    layout: Layout
    num_prefix_tokens: int
    grid: tuple[int, int]
    num_unrolls: int = 0

    def describe(self) -> str:
        """Channels, stride and layout in short.

        >>> StageSpec(channels=192, stride=16, layout="NLC", num_prefix_tokens=1, grid=(14, 14)).describe()
        '192/16 NLC+1'
        """
        prefix = f"+{self.num_prefix_tokens}" if self.num_prefix_tokens else ""
        return f"{self.channels}/{self.stride} {self.layout}{prefix}"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The facts of a model that other parts need, measured by a dry run (never typed in per model)."""

    name: str
    family: Family
    num_classes: int
    embedding_dim: int
    stages: tuple[StageSpec, ...]
    input: InputSpec
    num_parameters: int
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Outputs:
    """One forward pass: logits ``(B, K)``, embedding ``(B, D)``, and the raw tensor of each stage.

    A stored or ensemble teacher may hold only some of them; the rest is ``None``. An ensemble's outputs also hold its
    ``members``, one a teacher. Those of a student that saw several views of each image are its ``members`` alone.
    """

    logits: Tensor | None = None
    embedding: Tensor | None = None
    stages: tuple[Tensor, ...] | None = None
    members: tuple[Outputs, ...] | None = None

    def require(self, signal: Literal["logits", "embedding"]) -> Tensor:
        """The tensor of that name; a missing one is a programming error, since builds check ``needs``."""
        value = getattr(self, signal)
        if value is None:
            raise RuntimeError(f"these outputs hold no {signal}; the method must declare it in `needs`")
        return value  # type: ignore[no-any-return]

    def require_stages(self) -> tuple[Tensor, ...]:
        """The raw tensor of each stage; missing ones are a programming error, likewise."""
        if self.stages is None:
            raise RuntimeError("these outputs hold no stages; run the network as a StagedModel")
        return self.stages

    def only(self, signals: Collection[str]) -> Outputs:
        """The same without what is not asked for, which then need not stay in memory; ``members`` likewise."""
        return Outputs(
            logits=self.logits if "logits" in signals else None,
            embedding=self.embedding if "embedding" in signals else None,
            stages=self.stages if "stages" in signals else None,
            members=None if self.members is None else tuple(member.only(signals) for member in self.members),
        )


STUDENT_VIEW = "student"
"""How the names of what a student sees begin: all such views of a batch go through it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Prepared images ``(B, C, H, W)`` by view ("student", "teacher", …), targets and identity of the samples.

    In pretraining a student has several views, "student" and "student1", each of N crops of every image
    ``(B, N, C, H, W)``.

    ``target`` is ``(B,)`` int64 with -1 for unlabelled, or ``(B, K)`` class probabilities; ``sample_id`` ``(B,)``
    is the position in the source's canonical order. ``samples`` ``(B, 2)`` holds it once more, with how often the
    sample came before in this epoch; it stays on the host, so that what is looked up by it waits for no device.
    """

    images: Mapping[str, Tensor]
    target: Tensor
    sample_id: Tensor
    epoch: int = 0
    samples: Tensor | None = None

    def to(self, device: torch.device | str, *, channels_last: bool = False) -> Batch:
        """The same batch on another device; views that share a tensor go on sharing it."""
        moved: dict[int, Tensor] = {}
        for image in self.images.values():
            if id(image) not in moved:
                format_ = torch.channels_last if channels_last and image.ndim == 4 else torch.preserve_format
                moved[id(image)] = image.to(device, non_blocking=True, memory_format=format_)
        return replace(
            self,
            images={view: moved[id(image)] for view, image in self.images.items()},
            target=self.target.to(device, non_blocking=True),
            sample_id=self.sample_id.to(device, non_blocking=True),
        )

    @property
    def student_views(self) -> tuple[str, ...]:
        """Names of the views that the student sees."""
        return tuple(view for view in self.images if view.startswith(STUDENT_VIEW))

    def __len__(self) -> int:
        return len(self.target)


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a run stands: the step that begins, counted from 0, of how many, and its micro-batches."""

    step: int
    total_steps: int
    num_micro_batches: int = 1


@runtime_checkable
class Teacher(Protocol):
    """Anything that answers a batch with signals: live, ensemble, moving average and stored alike."""

    spec: ModelSpec
    holds: frozenset[Signal]

    def signals(self, batch: Batch) -> Outputs:
        """The teacher's outputs for this batch, without gradient, in eval mode."""
        ...

    def fingerprint(self) -> str:
        """A hash that names the weights behind the answers; checkpoints hold it instead of the teacher."""
        ...


@runtime_checkable
class Follower(Protocol):
    """A teacher that is made of the student and moves with it; it has state, which checkpoints hold."""

    def follow(self, student: nn.Module, moment: Moment) -> None:
        """Move towards the student; called once a step, with its weights before the step."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that :meth:`load_state_dict` needs."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> Any:
        """Take it up."""
        ...


@dataclass(frozen=True, slots=True)
class Modules:
    """The live networks, for methods that declare ``needs = {"modules"}`` (they fuse parts of both).

    ``teacher_view`` is which of a batch's images the teacher sees.
    """

    student: nn.Module
    teacher: nn.Module
    teacher_view: str = "teacher0"


class Method(nn.Module, ABC):
    """A distillation method: its parameters and buffers are bridges and memories that exist in training only.

    Attributes, of the class or of an instance whose options decide:
        needs: what it asks of the teacher.
        reads_stages: whether it reads the student's stages.
        relates_samples: its loss compares samples with each other: with several processes it is given outputs gathered
            over all of them.
        gathers_itself: it relates samples, too, but fetches what it needs of the other processes in its own forward.
        takes_views: it takes apart a student's several views of an image (``Outputs.members``), which pretraining has.
        includes_cross_entropy: its loss already holds the hard-label term, and the engine then adds none.
    """

    needs: frozenset[Signal] = frozenset({"logits"})
    reads_stages: bool = False
    relates_samples: bool = False
    gathers_itself: bool = False
    takes_views: bool = False
    includes_cross_entropy: bool = False

    @classmethod
    @abstractmethod
    def build(
        cls,
        student_spec: ModelSpec,
        teacher_spec: ModelSpec,
        *args: Any,
        **options: Any,
    ) -> Self:
        """Make the method for one pair of networks.

        A method takes ``*, num_classes: int, modules: Modules | None = None`` and, further, its own options as
        keyword-only parameters with types and defaults; settings, ``--help`` and checks are made from these. (The
        signature here is open so that a type checker accepts every such method.)
        """

    @abstractmethod
    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses, already weighted; the engine adds them up."""

    def measured(self) -> Mapping[str, nn.Module]:
        """Networks of its own whose accuracy shows whether it works, by name; they are evaluated with the student.

        Each maps images to :class:`Outputs`, and its attribute ``view`` says which of a batch's images.
        """
        return {}

    def begin_step(self, moment: Moment) -> None:
        """Called once before the micro-batches of a step."""

    def figures(self) -> Mapping[str, Tensor]:
        """Scalars that show whether it works, as of the last step, by name; they are logged beside the losses."""
        return {}

    def concerns(self, figures: Mapping[str, float]) -> Mapping[str, str]:
        """What must be said of these figures, by the name of the worry; each worry is told once a run."""
        return {}

    def alike(self) -> Collection[str]:
        """Names of buffers that every process computes alike, and that are therefore never sent."""
        return ()


class Composite(Method):
    """A method made of others: it needs, reads, gathers and measures whatever any of these does.

    A registered one takes an option ``methods``, the name of each part with its options. Whoever composes a run builds
    those of :meth:`counting` by its own rules (one a teacher, for instance); ``build`` takes them, by name, after the
    two specs.

    Args:
        parts: the methods by name.
    """

    def __init__(self, parts: Mapping[str, Method]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        methods = list(parts.values())
        self.needs = frozenset[Signal]().union(*(part.needs for part in methods))
        self.reads_stages = any(part.reads_stages for part in methods)
        self.relates_samples = any(part.relates_samples for part in methods)
        self.gathers_itself = any(part.gathers_itself for part in methods)
        self.includes_cross_entropy = any(part.includes_cross_entropy for part in methods)

    @classmethod
    def check(cls, *, methods: Mapping[str, Mapping[str, Any]], **options: Any) -> None:
        """Refuse options that do not go together, before anything is built."""

    @classmethod
    def counting(cls, *, methods: Mapping[str, Mapping[str, Any]], **options: Any) -> Mapping[str, Mapping[str, Any]]:
        """The ``methods`` that have a say with these options: no other is built."""
        return methods

    def named(self, part: str, name: str) -> str:
        """What a part's loss or network is called among those of the others."""
        return name if name.startswith(part) else f"{part}_{name}"

    def measured(self) -> Mapping[str, nn.Module]:
        """The networks of all parts."""
        return {
            self.named(part, name): net for part, one in self._each().items() for name, net in one.measured().items()
        }

    def begin_step(self, moment: Moment) -> None:
        """That of all parts."""
        for part in self._each().values():
            part.begin_step(moment)

    def figures(self) -> Mapping[str, Tensor]:
        """Those of all parts."""
        return {
            self.named(part, key): value for part, one in self._each().items() for key, value in one.figures().items()
        }

    def concerns(self, figures: Mapping[str, float]) -> Mapping[str, str]:
        """Those of all parts, each given its own figures."""
        found: dict[str, str] = {}
        for part, one in self._each().items():
            own = {key: figures[self.named(part, key)] for key in one.figures() if self.named(part, key) in figures}
            found |= {self.named(part, key): text for key, text in one.concerns(own).items()}
        return found

    def alike(self) -> Collection[str]:
        """Those of all parts."""
        return [f"parts.{part}.{name}" for part, one in self._each().items() for name in one.alike()]

    def _each(self) -> dict[str, Method]:
        return dict(self.parts.items())  # type: ignore[arg-type]

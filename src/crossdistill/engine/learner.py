"""What is trained, and on what: student and method as one module, and the loader that gives their batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from accelerate import Accelerator
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn

from crossdistill.contracts import Batch, Method, ModelSpec, Outputs
from crossdistill.engine.class_weights import weights_for
from crossdistill.engine.compiled import compiled
from crossdistill.engine.distribute import gather_samples
from crossdistill.engine.optimize import undecayed
from crossdistill.engine.phases import phase
from crossdistill.errors import InputError
from crossdistill.losses import cross_entropy
from crossdistill.settings import TrainSettings

HARD_LABELS = "cross_entropy"
"""The name of the loss that the engine adds itself, unless the method holds one already."""

ONE_VALUE = "Expected more than 1 value per channel"
"""What PyTorch says of a batch whose spread batch normalisation cannot take."""


class TrainLoader(Protocol):
    """Training data: a pure function of the epoch; one step is the list of this process's micro-batches.

    One that also :class:`~crossdistill.engine.class_weights.CountsClasses` can be balanced.
    """

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch."""
        ...

    def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[list[Batch]]:
        """The steps of one epoch, from ``start_step`` on."""
        ...


class Learner(nn.Module):
    """Student and method as one module, so that one wrapper sees every trained parameter.

    Args:
        student: ``images -> Outputs``.
        method: what compares student and teacher.
        settings: weight and label smoothing of the hard-label term.
        several: there are other processes, whose outputs a method that relates samples is given as well.
        weights: ``(K,)``, of each class in the hard-label term.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        student: nn.Module,
        method: Method,
        settings: TrainSettings,
        *,
        several: bool,
        weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.student, self.method = student, method
        self.gather = several and method.relates_samples
        self.together = several and (method.relates_samples or method.gathers_itself)
        self.is_channels_last = settings.channels_last
        # Of several views what nobody reads is let go at once: stages are large.
        self._read = {"logits", "embedding", *(["stages"] if method.reads_stages else [])}
        self.hard_label_weight = 0.0 if method.includes_cross_entropy else settings.cross_entropy_weight
        self.label_smoothing = settings.label_smoothing
        self.register_buffer("class_weights", weights, persistent=False)
        self._compiled_student: Callable[[Tensor], Outputs] | None = None
        self._compiled_losses: Callable[[Outputs, Tensor, Outputs, Outputs, Batch], dict[str, Tensor]] | None = None

    def compile_parts(self, settings: TrainSettings) -> None:
        """Compile what the settings ask for of a training step: the student's part, and bridges with all losses.

        Student and method themselves stay as they are, and so do the names of their weights, their copies, and what is
        evaluated and exported. What processes exchange is never compiled with the rest by the engine.
        """
        if settings.compile_student:
            self._compiled_student = compiled(self.student.__call__, cuda_graphs=settings.cuda_graphs)
        if settings.compile_method:
            self._compiled_losses = compiled(self._losses, cuda_graphs=settings.cuda_graphs)

    def forward(self, batch: Batch, teacher: Outputs) -> dict[str, Tensor]:
        """Named, weighted losses of one micro-batch; they add up to what is minimised."""
        with phase("student"):
            student = self._answers(batch)
        with phase("method"):
            own, target = student, batch.target
            if self.gather:
                needs, reads_stages = self.method.needs, self.method.reads_stages
                student, teacher, batch = gather_samples(
                    student, teacher, batch, needs=needs, reads_stages=reads_stages
                )
            losses = (self._compiled_losses or self._losses)(own, target, student, teacher, batch)
        if not losses:
            raise InputError(
                f"method {type(self.method).__name__} with cross_entropy_weight=0, which leaves no loss",
                "at least one loss",
                "set train.cross_entropy_weight above 0, or choose a method",
            )
        return losses

    def _losses(
        self, own: Outputs, target: Tensor, student: Outputs, teacher: Outputs, batch: Batch
    ) -> dict[str, Tensor]:
        """That of this process's ``own`` answers to its hard labels, and the method's of what it is given."""
        losses = {}
        if self.hard_label_weight:
            losses[HARD_LABELS] = self.hard_label_weight * cross_entropy(
                own.require("logits"),
                target,
                label_smoothing=self.label_smoothing,
                class_weights=self.class_weights,
            )
        losses |= self.method(student, teacher, batch)
        return losses

    def _answers(self, batch: Batch) -> Outputs:
        """The student's outputs, or of several views those of each as ``members``, crops one after the other."""
        views = [batch.images[view] for view in batch.student_views]
        if len(views) == 1 and views[0].ndim == 4:
            return self._answer(views[0])
        flat = (view.flatten(0, 1) if view.ndim == 5 else view for view in views)
        return Outputs(members=tuple(self._answer(images).only(self._read) for images in flat))

    def _answer(self, images: Tensor) -> Outputs:
        if self.is_channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        try:
            answers: Outputs = (self._compiled_student or self.student)(images)
        except ValueError as error:
            if ONE_VALUE in str(error):
                raise _one_value(images) from error
            raise
        return answers

    def no_weight_decay(self) -> set[str]:
        """The lists of the student and of each method, under the names in here (timm asks for it by this name)."""
        names = {f"student.{name}" for name in undecayed(self.student)}
        for prefix, part in self.method.named_modules(prefix="method"):
            if isinstance(part, Method):
                names |= {f"{prefix}.{name}" for name in undecayed(part)}
        return names


def _one_value(images: Tensor) -> InputError:
    num_images, _, height, width = images.shape
    return InputError(
        f"a batch of {num_images} image of {height} x {width} px for a student with batch normalisation, which meets "
        "one value of each channel where the image has shrunk to one position",
        "two images or more at a time: one value has no spread to normalise by",
        "raise train.batch_size, which several processes share, or student.image_size; or choose a student that has no "
        "batch normalisation",
    )


def build_learner(
    student: nn.Module, method: Method, loader: TrainLoader, settings: TrainSettings, accelerator: Accelerator
) -> Learner:
    """The learner in training mode on its device; on several GPUs batch statistics are taken over all of them.

    Raises:
        InputError: class weights that do not fit the classes, or a method whose parts cannot share several processes.
    """
    several = accelerator.num_processes > 1
    if several:
        _check_one_way(method)
    weights = None
    if settings.class_weights is not None:
        spec: ModelSpec = student.spec  # type: ignore[assignment]
        weights = weights_for(loader, settings, spec.num_classes)
    learner = Learner(student, method, settings, several=several, weights=weights)
    if several and accelerator.device.type == "cuda":
        convert_sync_batchnorm(learner)  # type: ignore[no-untyped-call]
    return learner.to(accelerator.device).train()


def _check_one_way(method: Method) -> None:
    """A method either is given the outputs of all processes or fetches them; what is given needs no fetching."""
    if method.relates_samples and method.gathers_itself:
        raise InputError(
            f"method {type(method).__name__} on several processes, one part of which must be given the outputs of all "
            "processes, while another fetches them itself",
            "parts that get them in one way",
            "train with one process, or leave out one of the two parts",
        )

"""Answers of a teacher that were written once, as a teacher: a method cannot tell them from the live network's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from crossdistill.contracts import Batch, InputSpec, ModelSpec, Outputs, Signal, StageSpec, Teacher
from crossdistill.store import Answers, Store
from crossdistill.teachers.several import are_several


class StoredTeacher:
    """Looks a batch up by its epoch and samples; runs no network.

    Args:
        store: what :func:`facts_of` said of the teacher is among its facts.

    Attributes:
        spec: that of the network which answered, named as stored.
        holds: logits, and the embedding where the store has it.
        passes_on: which signals its answers hold, beside the logits; all of them until somebody says what a method
            needs. An embedding that is left out is not read.

    Raises:
        InputError: a store whose facts do not describe a teacher.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        spec = _read(store, lambda facts: spec_of(facts["spec"]))
        self.spec: ModelSpec = replace(spec, name=f"{spec.name} (stored)")
        self.holds: frozenset[Signal] = _held(store).union(("logits",))
        self.passes_on: frozenset[Signal] = self.holds

    def signals(self, batch: Batch) -> Outputs:
        """The stored logits ``(B, K)`` and the embedding ``(B, D)`` if that is passed on, in float32, on the device of
        the batch.

        Raises:
            InputError: a sample without an answer, or a damaged shard.
        """
        answers = self._answers(batch)
        return Outputs(logits=answers.logits(), embedding=next(iter(answers.embeddings()), None))

    def fingerprint(self) -> str:
        """The hash that names what was stored: weights, images, and what is kept of each answer."""
        return self.store.fingerprint()

    def _answers(self, batch: Batch) -> Answers:
        samples = batch.samples
        if samples is None:  # whoever makes batches without it shows each image once
            ids = batch.sample_id.cpu()
            samples = torch.stack([ids, torch.zeros_like(ids)], dim=1)
        wanted = "embedding" in self.passes_on
        return self.store.read(batch.epoch, samples, embeddings=wanted).to(batch.target.device)


@dataclass(frozen=True, slots=True)
class StoredMember:
    """One of the teachers of a stored ensemble: its embeddings are its own, its logits are in the ensemble's."""

    spec: ModelSpec
    holds: frozenset[Signal]
    view: str


class StoredEnsemble(StoredTeacher):
    """Several teachers whose one answer was stored, with each one's embeddings in ``Outputs.members``."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.passes_on = frozenset({"logits"})
        self.weights: tuple[float, ...] = _read(store, lambda facts: tuple(map(float, facts["weights"])))
        specs = _read(store, lambda facts: [spec_of(one) for one in facts["members"]])
        self.teachers = tuple(
            StoredMember(replace(spec, name=f"{spec.name} (stored)"), _held(store), f"teacher{index}")
            for index, spec in enumerate(specs)
        )

    def signals(self, batch: Batch) -> Outputs:
        """The log of the mean of probabilities ``(B, K)``, and the embedding of each teacher if that is passed on."""
        answers = self._answers(batch)
        each = answers.embeddings() or (None,) * len(self.teachers)
        return Outputs(logits=answers.logits(), members=tuple(Outputs(embedding=one) for one in each))


def stored_teacher(store: Store) -> StoredTeacher:
    """The teacher, or the several in one, whose answers these are."""
    return StoredEnsemble(store) if _read(store, lambda facts: facts["members"]) else StoredTeacher(store)


def facts_of(teacher: Teacher) -> dict[str, Any]:
    """What a store must say of the teacher whose answers it holds, as plain data for its manifest."""
    several = teacher if are_several(teacher) else None
    return {
        "spec": asdict(teacher.spec),
        "members": [asdict(one.spec) for one in several.teachers] if several else [],
        "weights": list(several.weights) if several else [],
    }


def spec_of(plain: Mapping[str, Any]) -> ModelSpec:
    """A model's facts again from plain data."""
    shown, names = plain["input"], plain["class_names"]
    image = {key: tuple(shown[key]) for key in ("image_size", "mean", "std")}
    stages = tuple(StageSpec(**{**stage, "grid": tuple(stage["grid"])}) for stage in plain["stages"])
    classes = None if names is None else tuple(names)
    return ModelSpec(**{**plain, "input": InputSpec(**{**shown, **image}), "stages": stages, "class_names": classes})


def _held(store: Store) -> frozenset[Signal]:
    return frozenset({"embedding"}) if store.manifest.keep.embeddings else frozenset()


def _read(store: Store, what: Any) -> Any:
    return store.fact("its teacher", lambda manifest: what(manifest.facts["teacher"]))

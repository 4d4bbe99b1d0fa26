"""A client's part of a round: learn from what was fused, see whether that helped, train, answer the transfer set."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from crossdistill.contracts import UNLABELLED, Batch, InputSpec, Method
from crossdistill.data import EvalLoader, TrainLoader
from crossdistill.engine import connect, evaluate, fit
from crossdistill.errors import InputError
from crossdistill.federated.account import Account
from crossdistill.federated.knowledge import Knowledge
from crossdistill.federated.memory import Memory, Past
from crossdistill.federated.private import delta_for, noise_for, sampling, train_privately
from crossdistill.federated.selection import familiar
from crossdistill.federated.settings import FederateSettings, quiet_augment
from crossdistill.federated.sites import Images, Site
from crossdistill.federated.teacher import GivenTeacher
from crossdistill.methods.none import NoDistillation
from crossdistill.models import StagedModel
from crossdistill.registry import METHODS
from crossdistill.runs.compose import model_of

EVAL_BATCH = 256
FEWEST = 2
"""Fewest images to train on: batch statistics of one image are none."""

Weights = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Task:
    """What the server asks of a client in a round.

    ``teacher`` holds probabilities at ``temperature`` for the transfer set, ``weights`` the network to go on with.
    ``wants`` are the things to answer: knowledge, selection, weights, histogram. A ``closing`` task ends a run: nothing
    is trained or answered after what was sent has been learnt.
    """

    round: int
    temperature: float
    wants: frozenset[str] = frozenset()
    teacher: Knowledge | None = None
    weights: Weights | None = None
    closing: bool = False
    test: bool = True

    def digest(self) -> str:
        """A hash of all of it: a task that was carried out before is told from another one of the same round."""
        plain = [self.round, self.temperature, sorted(self.wants), self.closing, self.test]
        digest = hashlib.sha256(json.dumps(plain).encode())
        if self.teacher is not None:
            digest.update(self.teacher.soft.tobytes() + self.teacher.rows.tobytes())
        for name, value in sorted((self.weights or {}).items()):
            digest.update(name.encode() + value.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Reply:
    """What a client answers: figures about the round before, and what was asked for."""

    figures: dict[str, float]
    knowledge: Knowledge | None = None
    weights: Weights | None = None
    histogram: NDArray[np.int64] | None = None
    notes: tuple[str, ...] = ()


class Client:
    """One client; everything that it knows from round to round lies in its memory.

    Args:
        site: its images.
        settings: those of the federation.
        memory: where its network is kept between rounds.
        account: what noisy training costs this client; default one beside its memory, without a limit.
        run: names the run, to the account.
    """

    def __init__(
        self,
        site: Site,
        settings: FederateSettings,
        memory: Memory,
        *,
        account: Account | None = None,
        run: str = "run",
    ) -> None:
        self.site, self.settings, self.memory, self.run = site, settings, memory, run
        self.account = account or Account(memory.folder / "account")
        self.accelerator: Accelerator = connect(settings.device, settings.train.precision)

    def carry_out(self, task: Task) -> Reply:
        """Do what the server asks, and remember the result.

        A task that was carried out before, and whose reply was lost, is not carried out again: what it answers is.

        Raises:
            InputError: a loss that is not finite, images that cannot be read, …
        """
        self._check(task)
        mark = task.digest()
        past = self.memory.before(task.round)
        if past is not None and past.round == task.round:
            if past.task == mark:
                student, _ = self._restored(past)
                return self._answer(task, student, past.figures, tuple(past.notes))
            past = self.memory.before(task.round - 1)
        start = time.perf_counter()
        student, method = self._begun(task) if past is None else self._restored(past)
        if task.weights is not None:
            _load(student, task.weights)
        figures = self._learn(task, student, method)
        if task.test and past is not None:  # a network that has not been trained yet says nothing of any round
            figures |= self.test(student)
        notes: list[str] = []
        if not task.closing:
            figures |= self._train(task, student, notes)
        figures["seconds"] = time.perf_counter() - start
        kept = (student.net.state_dict(), method.state_dict())
        self.memory.keep(Past(task.round, *kept, figures=figures, notes=notes, task=mark))
        return self._answer(task, student, figures, tuple(notes))

    def _check(self, task: Task) -> None:
        """Refuse what would go past the noise, whatever a server says."""
        private = self.settings.privacy.on
        if self.account.needs_noise and not private:
            raise InputError(
                f"training without noise on a client that spends epsilon {self.account.budget:g} at most",
                "privacy.epsilon or privacy.noise_multiplier",
                "set one where the run is submitted",
            )
        revealing = task.wants & {"selection", "histogram"}
        if private and revealing:
            raise InputError(
                f"a request for {', '.join(sorted(revealing))} with differential privacy, which no noise was added to",
                "knowledge or weights",
                "choose another strategy",
            )

    def _begun(self, task: Task) -> tuple[StagedModel, Method]:
        """A network with its first weights: those of all clients that share weights, or the client's own."""
        own = 0 if "weights" in task.wants else self.site.client
        torch.manual_seed(seed_of(self.settings.seed, own, 0, 0))
        model = self.settings.model_for(self.site.client)
        student = model_of(model, self.site.class_names)
        return student, self._method(student)

    def _restored(self, past: Past) -> tuple[StagedModel, Method]:
        model = self.settings.model_for(self.site.client)
        student = copy.deepcopy(_prototype(model.model_dump_json(), self.site.class_names))
        student.net.load_state_dict(past.student)
        method = self._method(student)
        method.load_state_dict(past.method)
        return student, method

    def _method(self, student: StagedModel) -> Method:
        """The method between the client's network and what it is told; seeded apart from the network."""
        torch.manual_seed(seed_of(self.settings.seed, self.site.client, 0, 1))
        options = self.settings.method.options
        made: Method = METHODS.get(self.settings.method.name).value.build(
            student.spec, student.spec, num_classes=len(self.site.class_names), **options
        )
        return made

    def _learn(self, task: Task, student: StagedModel, method: Method) -> dict[str, float]:
        """Fine-tune on the fused knowledge; go back if that made the client worse on labels of its own."""
        if task.teacher is None or not task.teacher.rows.any():
            return {}
        before = self._validate(student)
        kept = copy.deepcopy((student.net.state_dict(), method.state_dict()))
        transfer, rows = self.site.transfer, task.teacher.rows
        ids = transfer.ids[rows]
        heard = Knowledge.of(task.teacher.soft[rows])
        teacher = GivenTeacher(heard, ids, student.spec, temperature=task.temperature)
        method = _at_temperature(method, task.temperature)
        loader = self._loader(Images(transfer.source, ids), student, task, labelled=False)
        seed = seed_of(self.settings.seed, self.site.client, task.round, 2)
        fit(student, method, teacher, loader, None, settings=self.settings.tune, seed=seed, device=self.settings.device)
        after = self._validate(student)
        worse = before - after > self.settings.safety.tolerance + 1e-9
        rejected = worse and self.settings.safety.reject
        if rejected:
            student.net.load_state_dict(kept[0])
            method.load_state_dict(kept[1])
        return {"val_before": before, "val_after": after, "rejected": float(rejected)}

    def _train(self, task: Task, student: StagedModel, notes: list[str]) -> dict[str, float]:
        """Train on the client's own labels; what noisy training has cost by then."""
        images, settings = self.site.train, self.settings
        if len(images) < FEWEST:
            notes.append(f"{len(images)} image(s) to train on: not trained")
            return {}
        if settings.privacy.on:
            return self._train_privately(student)
        seed = seed_of(settings.seed, self.site.client, task.round, 3)
        loader = self._loader(images, student, task, labelled=True)
        fit(student, NoDistillation(), None, loader, None, settings=settings.train, seed=seed, device=settings.device)
        return {}

    def _train_privately(self, student: StagedModel) -> dict[str, float]:
        """The same with differential privacy of each image."""
        images, settings, privacy, account = self.site.train, self.settings, self.settings.privacy, self.account
        deltas = [one for one in (privacy.delta, account.delta) if one is not None]
        delta = delta_for(len(images), min(deltas) if deltas else None)
        rate, steps = sampling(len(images), settings.train)
        noise = privacy.noise_multiplier
        if noise is None:
            assert privacy.epsilon is not None  # one of the two is given
            noise = noise_for(privacy.epsilon, delta, rate, steps * settings.rounds)
        own = account.spent(delta, self.run)
        own.charge(noise, rate, steps)
        if privacy.epsilon is not None and own.epsilon > privacy.epsilon:
            raise InputError(
                f"epsilon {own.epsilon:.4g} after {own.steps} steps of this run",
                f"at most privacy.epsilon={privacy.epsilon:g}",
                "take fewer rounds; training that was repeated was paid for twice",
            )
        spent = train_privately(
            student,
            images.source,
            images.ids,
            images.source.targets,
            train=settings.train,
            noise_multiplier=noise,
            max_grad_norm=privacy.max_grad_norm,
            seed=account.seed,
            device=self.accelerator.device,
            spent=account.spent(delta),
            limit=account.budget,
            workers=settings.data.workers,
            max_corrupt_share=settings.data.max_corrupt_share,
            on_paid=lambda rate, steps: account.pay(self.run, noise, rate, steps),
        )
        return {"epsilon": spent.epsilon} if spent.epsilon < math.inf else {}

    def _loader(self, images: Images, student: StagedModel, task: Task, *, labelled: bool) -> TrainLoader:
        """Batches to learn from: the client's own images with random changes, those of the transfer set without."""
        loop = self.settings.train if labelled else self.settings.tune
        targets = images.source.targets if labelled else np.full_like(images.source.targets, UNLABELLED)
        return TrainLoader(
            images.source,
            images.ids,
            targets,
            {"student": student.spec.input},
            self.settings.data.augment if labelled else quiet_augment(),
            seed=seed_of(self.settings.seed, self.site.client, task.round, 4 + labelled),
            batch_size=loop.batch_size,
            device_batch_size=loop.device_batch_size,
            balanced=labelled and self.settings.data.sampling == "class_balanced",
            workers=self.settings.data.workers,
            max_corrupt_share=self.settings.data.max_corrupt_share,
        )

    def _validate(self, student: StagedModel) -> float:
        """Accuracy on the client's private labels; nothing is worse than anything where there are none."""
        if not len(self.site.val):
            return 0.0
        return float(self._evaluate(student, self.site.val)["top1"])

    def test(self, student: StagedModel) -> dict[str, float]:
        """Accuracy on the client's own distribution, and on all classes equally."""
        found = self._evaluate(student, self.site.test)
        recalls, known = recalls_of(found)
        if self.site.shares is None:
            own = found["top1"]
        else:
            shares = np.where(known, self.site.shares, 0.0)
            own = float((shares * recalls).sum() / shares.sum()) if shares.sum() > 0 else None
        if self.site.everyone is not None:
            recalls, known = recalls_of(self._evaluate(student, self.site.everyone))
        figures = {"balanced_accuracy": float(recalls[known].mean())}
        return figures if own is None else {"own_accuracy": float(own), **figures}

    def _evaluate(self, student: StagedModel, images: Images) -> dict[str, Any]:
        loader = _eval_loader(images, student.spec.input, self.settings)
        return evaluate(student, loader, accelerator=self.accelerator)

    def _answer(self, task: Task, student: StagedModel, figures: dict[str, float], notes: tuple[str, ...]) -> Reply:
        if task.closing:
            return Reply(figures, notes=notes)
        knowledge = weights = None
        if len(self.site.train) >= FEWEST and "knowledge" in task.wants:
            knowledge = self._knowledge(student, selective="selection" in task.wants)
        if "weights" in task.wants:
            weights = {name: tensor.cpu().numpy() for name, tensor in student.net.state_dict().items()}
        counts = self.site.histogram if "histogram" in task.wants else None
        return Reply(figures, knowledge, weights, counts, notes)

    def _knowledge(self, student: StagedModel, *, selective: bool) -> Knowledge:
        """Probabilities for the transfer set at the temperature that all clients use."""
        transfer, num_classes = self.site.transfer, len(self.site.class_names)
        soft = np.full((len(transfer), num_classes), 1 / num_classes, dtype=np.float32)
        rows = np.zeros(len(transfer), dtype=bool)
        embeddings = np.zeros((len(transfer), student.spec.embedding_dim), dtype=np.float32)
        for ids, logits, embedding in self._forward(student, transfer):
            places = np.searchsorted(transfer.ids, ids)
            soft[places] = (logits / self.settings.fusion.temperature).softmax(dim=1).numpy()
            embeddings[places], rows[places] = embedding.numpy(), True
        if selective:
            own = np.concatenate([one.numpy() for _, _, one in self._forward(student, self.site.train)])
            rows &= familiar(embeddings, own)
        return Knowledge(soft, rows)

    @torch.no_grad()
    def _forward(self, student: StagedModel, images: Images) -> Iterator[tuple[Any, torch.Tensor, torch.Tensor]]:
        """Ids, logits and embeddings of images, batch by batch, on the host."""
        student.to(self.accelerator.device).eval()
        batches: Iterator[Batch] = iter(_eval_loader(images, student.spec.input, self.settings))
        for batch in batches:
            with self.accelerator.autocast():
                outputs = student(batch.images["student"].to(self.accelerator.device))
            logits, embedding = outputs.require("logits"), outputs.require("embedding")
            yield batch.sample_id.numpy(), logits.float().cpu(), embedding.float().cpu()


def seed_of(seed: int, client: int, round_: int, purpose: int) -> int:
    """The seed of one thing that one client does in one round."""
    words = np.random.SeedSequence([seed, client, round_, purpose]).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1


def recalls_of(found: Mapping[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Accuracy of each class ``(C,)``, and which classes were tested at all."""
    correct, total = np.array(found["class_correct"], dtype=float), np.array(found["class_total"], dtype=float)
    return correct / np.maximum(total, 1), total > 0


def _load(student: StagedModel, weights: Weights) -> None:
    student.net.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})


def _at_temperature(method: Method, temperature: float) -> Method:
    """A method that has a temperature, at that of the knowledge it compares with, which the server may change."""
    if getattr(method, "temperature", temperature) != temperature:
        method.temperature = temperature  # type: ignore[assignment]
    return method


@functools.lru_cache(maxsize=8)
def _prototype(model_json: str, class_names: tuple[str, ...]) -> StagedModel:
    """A network to copy and give weights to: finding its stages takes longer than a round of a small one."""
    from crossdistill.settings import ModelSettings

    settings = ModelSettings.model_validate_json(model_json).model_copy(update={"init": None})
    return model_of(settings, class_names)


_LOADERS: dict[Any, EvalLoader] = {}
"""Loaders of images that come again every round, which keep them prepared; a few dozen at most."""


def _eval_loader(images: Images, view: InputSpec, settings: FederateSettings) -> EvalLoader:
    if settings.data.eval_crop_pct is not None:
        view = replace(view, crop_pct=settings.data.eval_crop_pct)
    key = (id(images.source), images.ids.tobytes(), view)
    if key not in _LOADERS:
        while len(_LOADERS) >= 64:
            _LOADERS.pop(next(iter(_LOADERS)))
        _LOADERS[key] = EvalLoader(
            images.source,
            {"student": view},
            batch_size=EVAL_BATCH,
            workers=settings.data.workers,
            max_corrupt_share=settings.data.max_corrupt_share,
            ids=images.ids,
        )
    return _LOADERS[key]

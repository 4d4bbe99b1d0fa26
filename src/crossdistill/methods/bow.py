"""Bags of visual words, the objective of OBoW: predict which of a teacher's local features an image holds.

With a moving average of the student as teacher it is OBoW (:mod:`crossdistill.selfsup`). With a trained teacher it
distils without labels, between any two networks: our extension.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossdistill.bridges.draws import new_seed, uniform_by_id
from crossdistill.bridges.dynamic_head import DynamicHead
from crossdistill.bridges.layout import as_map
from crossdistill.bridges.vocabulary import Queue, Vocabulary, fitting
from crossdistill.contracts import Batch, Method, ModelSpec, Modules, Moment, Outputs, StageSpec
from crossdistill.errors import InputError, UnsuitablePair
from crossdistill.losses.bow import Pool, bow_cross_entropy, check_pool, perplexities
from crossdistill.losses.inputs import check_positive, check_weights, widen
from crossdistill.registry import METHODS

COLLAPSED_SPREAD = 0.05
SAME_BAGS = 1.05
FEW_WORDS = 0.02


class Level(nn.Module):
    """One level of the teacher: its vocabulary, and the head that predicts its words."""

    def __init__(self, stage: StageSpec, vocabulary: Vocabulary, head: DynamicHead) -> None:
        super().__init__()
        self.stage, self.vocabulary, self.head = stage, vocabulary, head


@METHODS.register(
    "bow",
    title="Bags of visual words",
    paper="OBoW, Gidaris et al., CVPR 2021, arXiv 2012.11552; with a trained teacher: ours",
    summary="The student predicts how often the teacher's map shows each word of a queue of its latest local features.",
    pick_when="there are no labels (crossdistill pretrain), or logits mean nothing for the data at hand",
)
class BagOfWords(Method):
    """Cross-entropy of predicted words with the teacher's bag, averaged over levels and summed over sizes of views.

    Each level has a vocabulary and a dynamic head of its own; all are predicted from the student's one embedding.
    """

    needs = frozenset({"stages"})
    gathers_itself = True
    takes_views = True

    draw_seed: Tensor
    step: Tensor

    def __init__(self, levels: Mapping[int, Level], *, weight: float) -> None:
        super().__init__()
        self.levels = nn.ModuleDict({str(number): level for number, level in levels.items()})
        self.weight = weight
        self.register_buffer("draw_seed", new_seed())
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._figures: dict[str, Tensor] = {}

    @classmethod
    def build(
        cls,
        student_spec: ModelSpec,
        teacher_spec: ModelSpec,
        *,
        num_classes: int,
        modules: Modules | None = None,
        levels: list[int] | None = None,
        num_words: int = 8192,
        inverse_delta: float | None = 15.0,
        kappa: float = 8.0,
        learn_kappa: bool = False,
        pool: Pool = "max",
        border: int | None = None,
        queue: Queue | None = None,
        words_per_step: int | None = None,
        initial_distance: float | None = None,
        cosine: bool = False,
        weight: float = 1.0,
    ) -> Self:
        """Make it for one pair; the defaults are those of the published ResNet-50.

        Args:
            student_spec: the student's facts; the width of its embedding.
            teacher_spec: the teacher's facts; its stages.
            num_classes: not used.
            modules: not used.
            levels: stages of the teacher whose words are predicted, counted from 1; default the last two ("full").
            num_words: words of each level; fewer suit narrow domains and small sets.
            inverse_delta: how sharply a location chooses its words; 10 for ResNet-18, null the nearest word alone.
            kappa: factor of the logits; 5 for ResNet-18.
            learn_kappa: whether it is trained.
            pool: max or mean over locations.
            border: rows and columns at each edge of a map that do not count; default 1, on maps below 5 x 5 none.
            queue: what becomes a word: local_average (3 x 3 locations), location or global_average; default the first,
                on maps below 3 x 3 the second.
            words_per_step: so many images of a step give a word; default all.
            initial_distance: start of the mean distance to the nearest word; 0.5 as published, default the first
                batch's.
            cosine: scale features and words to length 1 (ours for transformers, as in MOCA).
            weight: factor of the loss.

        Raises:
            UnsuitablePair: a teacher without stages.
            InputError: a level that does not exist, one whose map is too small, options out of range.
        """
        check_weights({"weight": weight})
        check_pool(pool)
        check_positive({"kappa": kappa, "inverse_delta": 1.0 if inverse_delta is None else inverse_delta})
        limits = (("num_words", num_words, 2), ("words_per_step", words_per_step, 1), ("border", border, 0))
        for name, value, least in limits:
            if value is not None and value < least:
                raise InputError(f"{name}={value}", f"{name} of {least} or more", f"raise method.{name}")
        if initial_distance is not None:
            check_positive({"initial_distance": initial_distance})
        made = {}
        for number in _numbers(levels, teacher_spec):
            stage = teacher_spec.stages[number - 1]
            where = f"level {number} of {teacher_spec.name}"
            border_of_level, queue_of_level = fitting(stage.grid, where, border=border, queue=queue)
            vocabulary = Vocabulary(
                num_words,
                stage.channels,
                inverse_delta=inverse_delta,
                pool=pool,
                border=border_of_level,
                queue=queue_of_level,
                words_per_step=words_per_step,
                initial_distance=initial_distance,
                cosine=cosine,
            )
            head = DynamicHead(stage.channels, student_spec.embedding_dim, kappa=kappa, learn_kappa=learn_kappa)
            made[number] = Level(stage, vocabulary, head)
        return cls(made, weight=weight)

    def begin_step(self, moment: Moment) -> None:
        """The words of this step are those that there are now."""
        self.step.fill_(moment.step)
        for level in self._levels():
            level.vocabulary.begin_step(moment.num_micro_batches)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """``{"bow": loss}``, or one a size of views, such as ``{"bow_160px": …, "bow_96px": …}``."""
        stages = teacher.require_stages()
        targets = {}
        for place, (number, level) in enumerate(self.numbered()):
            draws = uniform_by_id(batch.sample_id, self.draw_seed + len(self.levels) * self.step + place)
            targets[number] = level.vocabulary.bags(as_map(stages[int(number) - 1], level.stage), draws)
        weights = {number: level.head(level.vocabulary.snapshot) for number, level in self.numbered()}
        groups = _views(student, batch)
        terms = {}
        for name, embedding in groups.items():
            losses = [
                bow_cross_entropy(level.head.logits(embedding, weights[number]), targets[number])
                for number, level in self.numbered()
            ]
            terms[name] = self.weight * torch.stack(losses).mean()
        self._look(targets, next(iter(groups.values())))
        return terms

    def figures(self) -> Mapping[str, Tensor]:
        """Of each level: perplexities, mean distance, share of words used; and how far embeddings are spread."""
        found = dict(self._figures)
        for number, level in self.numbered():
            found |= {f"{name}_level{number}": value for name, value in level.vocabulary.figures().items()}
        return found

    def concerns(self, figures: Mapping[str, float]) -> Mapping[str, str]:
        """Collapse of the embedding, bags that are all alike, and words that nothing is like."""
        told: dict[str, str] = {}
        if figures.get("embedding_spread", 1.0) < COLLAPSED_SPREAD:
            told["collapse"] = (
                f"the student's embeddings are nearly the same for all images (spread {figures['embedding_spread']:.3f}"
                " of at most 1): training has collapsed; lower train.lr, or show the student more or harder views"
            )
        for number, level in self.numbered():
            if int(level.vocabulary.num_written) < len(level.vocabulary.words):
                continue  # random words are nobody's fault
            together, each = (figures.get(f"perplexity_{one}_level{number}", 0.0) for one in ("batch", "image"))
            if each > 1 and together < SAME_BAGS * each:
                told[f"same_bags_level{number}"] = (
                    f"the bags of level {number} are nearly the same for all images (perplexity {each:.1f} of one, "
                    f"{together:.1f} of a batch): there is nothing to predict; raise method.inverse_delta, or choose "
                    "another level"
                )
            if figures.get(f"words_used_level{number}", 1.0) < FEW_WORDS:
                told[f"dead_words_level{number}"] = (
                    f"the vocabulary of level {number} is dead: of the words that leave it only "
                    f"{figures[f'words_used_level{number}']:.1%} were ever the nearest of a location; lower train.lr, "
                    "or method.num_words"
                )
        return told

    def alike(self) -> Collection[str]:
        """Vocabularies: each process writes the words of all of them, in one order."""
        return [name for name, _ in self.named_buffers() if ".vocabulary." in name or name in ("draw_seed", "step")]

    @torch.no_grad()
    def _look(self, targets: Mapping[str, Tensor], embedding: Tensor) -> None:
        """Note what this step's figures are made of; one image alone shows nothing of what images have in common."""
        if len(next(iter(targets.values()))) < 2:
            self._figures = {}
            return
        units = F.normalize(widen(embedding.detach()), dim=1)
        # Independent directions have 1, equal ones 0.
        figures = {"embedding_spread": (1 - units.mean(dim=0).square().sum()).clamp(min=0).sqrt()}
        for number, bags in targets.items():
            image, together = perplexities(bags)
            figures |= {f"perplexity_image_level{number}": image, f"perplexity_batch_level{number}": together}
        self._figures = figures

    def numbered(self) -> list[tuple[str, Level]]:
        """The levels by their number, from shallow to deep."""
        return list(self.levels.items())  # type: ignore[arg-type]

    def _levels(self) -> list[Level]:
        return [level for _, level in self.numbered()]


def _views(student: Outputs, batch: Batch) -> dict[str, Tensor]:
    """Embeddings ``(B n, D)`` of each size of views, by the name of its loss."""
    if student.members is None:
        return {"bow": student.require("embedding")}
    groups: dict[str, Tensor] = {}
    for view, outputs in zip(batch.student_views, student.members, strict=True):
        name = f"bow_{batch.images[view].shape[-1]}px"
        groups[f"{name}_{view}" if name in groups else name] = outputs.require("embedding")
    return groups


def _numbers(levels: Sequence[int] | None, teacher: ModelSpec) -> list[int]:
    """The chosen levels, from shallow to deep."""
    num_stages = len(teacher.stages)
    if num_stages == 0:
        raise UnsuitablePair(
            f"teacher {teacher.name!r}, which has no stages",
            "a network whose stages can be viewed as maps",
            "name its stages by hand (`stages` of the model's settings), or take a method that needs none",
        )
    chosen = [max(1, num_stages - 1), num_stages] if levels is None else levels
    if not chosen or any(number not in range(1, num_stages + 1) for number in chosen):
        raise InputError(f"levels={chosen}", f"numbers from 1 to {num_stages}, at least one", "correct method.levels")
    return sorted(set(chosen))

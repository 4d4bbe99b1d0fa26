"""FBT, Li et al., ICCV 2025: a network fused from teacher and student stands between them, and all three are matched.

``L = sum over teacher -> student, teacher -> fused, fused -> student of InfoNCE(features) + OFA(logits)``
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from torch import Tensor, nn

from crossdistill import losses
from crossdistill.bridges.contrast import HIGHEST_TEMPERATURE, LOWEST_TEMPERATURE, Contrast, same_image
from crossdistill.bridges.fused import Fusion, Order, fusion_of, level_bridge
from crossdistill.bridges.gather import gather_rows
from crossdistill.bridges.layout import as_tokens
from crossdistill.bridges.level_bridge import LevelBridge
from crossdistill.contracts import Batch, Method, ModelSpec, Modules, Outputs
from crossdistill.errors import InputError
from crossdistill.losses.inputs import check_positive, check_same_classes, check_weights
from crossdistill.losses.ofa import Form, check_gamma
from crossdistill.registry import METHODS

LogitLoss = Literal["ofa", "kd", "dist"]
Feature = Literal["cls", "patch_mean"]

PAIRS = {
    "teacher_student": ("teacher", "student"),
    "teacher_fusion": ("teacher", "fusion"),
    "fusion_student": ("fusion", "student"),
}
"""Name -> who teaches whom."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Of each pair, of the two kinds of loss that every pair has, and of the fused network's hard labels."""

    pairs: Mapping[str, float]
    nce: float
    logits: float
    fusion_ce: float

    @property
    def contrasted(self) -> list[str]:
        """The pairs whose features are compared."""
        return [name for name, weight in self.pairs.items() if weight and self.nce]

    @property
    def matched(self) -> list[str]:
        """The pairs whose logits are compared."""
        return [name for name, weight in self.pairs.items() if weight and self.logits]

    @property
    def fuse(self) -> bool:
        """Whether any loss reads the fused network."""
        return bool(self.fusion_ce) or any("fusion" in PAIRS[name] for name in [*self.contrasted, *self.matched])


@dataclass(frozen=True, slots=True)
class LogitTerm:
    """The loss on logits and its numbers."""

    loss: LogitLoss
    form: Form
    gamma: float
    temperature: float

    def __call__(self, learner: Tensor, source: Tensor, labels: Tensor) -> Tensor:
        """The scalar loss of a learner's logits ``(B, K)`` given a source's."""
        temperature = self.temperature
        if self.loss == "kd":
            return losses.kd(learner, source, temperature=temperature)
        if self.loss == "dist":
            return losses.dist(learner, source, beta=1.0, gamma=1.0, temperature=temperature)
        return losses.ofa(learner, source, labels, gamma=self.gamma, temperature=temperature, form=self.form)


@METHODS.register(
    "fbt",
    title="Fuse before transfer",
    paper="Li, Wang, Yan, Ding, Gao, Xia, ICCV 2025, arXiv 2410.12342",
    summary="A third network, spliced from stages of teacher and student by a small bridge, is taught and teaches.",
    pick_when="teacher and student are of different families, the teacher is one live network, and memory allows",
)
class FBT(Method):
    """InfoNCE on features and the OFA loss on logits for each of three pairs; the bridge is dropped after training.

    The fused network is the CNN's stages but the last, the bridge, and the other network's last stage and classifier;
    weights are those of teacher and student themselves. Its first part is not computed again: it takes the stage that
    the one pass of student or teacher has given already, so it costs the bridge and one last stage.

    Sources are detached. Negatives are the images of the micro-batch on all processes: accumulation does not restore
    those of a larger one. An image that is there more than once is no negative of itself. An unlabelled sample's target
    class is the teacher's choice, in every pair.

    With ``form="paper"`` each OFA loss holds the hard-label cross-entropy: the engine then adds none where the student
    gets it so (``train.cross_entropy_weight`` and ``label_smoothing`` have no effect), it counts twice for the student
    and once for the fused network.
    """

    needs = frozenset({"logits", "embedding", "stages", "modules"})
    reads_stages = True
    gathers_itself = True

    def __init__(
        self,
        fusion: Fusion,
        bridge: LevelBridge | None,
        contrasts: Mapping[str, Contrast],
        logit_term: LogitTerm,
        weights: Weights,
        specs: Mapping[str, ModelSpec],
        vit_feature: Feature,
        detach_fusion: bool,
    ) -> None:
        super().__init__()
        self.fusion = fusion  # no module: what it holds is the learner's and the teacher's, and stays theirs
        self.bridge = bridge
        self.contrasts = nn.ModuleDict(dict(contrasts))
        self.logit_term, self.weights = logit_term, weights
        self.specs, self.vit_feature, self.detach_fusion = dict(specs), vit_feature, detach_fusion
        in_student = any(PAIRS[name][1] == "student" for name in weights.matched)
        self.includes_cross_entropy = logit_term.form == "paper" and logit_term.loss == "ofa" and in_student

    @classmethod
    def build(
        cls,
        student_spec: ModelSpec,
        teacher_spec: ModelSpec,
        *,
        num_classes: int,
        modules: Modules | None = None,
        order: Order = "rule",
        mlp_ratio: float = 4.0,
        vit_feature: Feature = "cls",
        nce_symmetric: bool = False,
        projection_dim: int | None = None,
        nce_temperature: float = 0.07,
        detach_fusion: bool = True,
        fusion_ce_weight: float = 0.0,
        form: Form = "code",
        gamma: float = 1.0,
        temperature: float = 1.0,
        logit_loss: LogitLoss = "ofa",
        teacher_student_weight: float = 1.0,
        teacher_fusion_weight: float = 1.0,
        fusion_student_weight: float = 1.0,
        nce_weight: float = 1.0,
        logit_weight: float = 1.0,
    ) -> Self:
        """Make it for one pair. The paper gives the three pairs, the two losses and their weights of 1; the defaults
        of all other options are our choice. A loss of weight 0 is left out, with all that only it needs.

        Args:
            student_spec: the student's facts.
            teacher_spec: the teacher's facts.
            num_classes: classes of the data.
            modules: both live networks.
            order: which network gives the first stages; ``"rule"``: a CNN where only one is, else the student.
            mlp_ratio: of the bridge's block, whose MLP has one channel at least; 2 saves memory where its network is
                wide.
            vit_feature: feature of a network with prefix tokens: what its classifier reads, or the mean of its patches.
            nce_symmetric: InfoNCE in both directions.
            projection_dim: project both features to this width always; default the learner's, where widths differ.
            nce_temperature: where the learnt temperatures start, from 0.01 to 1.
            detach_fusion: whether the fused network is a fixed target for the student.
            fusion_ce_weight: weight of hard labels for the fused network, a mean over all samples.
            form: of the OFA loss: the label counted once, by the engine, or in every OFA loss (see the class).
            gamma: exponent of the OFA loss's target boost, at most 16; 1.2 and 1.5 are worth trying on ImageNet.
            temperature: divides all logits.
            logit_loss: the OFA loss as published, or ``kd`` or ``dist`` in its place.
            teacher_student_weight: weight of both losses of this pair, and so on.
            teacher_fusion_weight: without it nothing teaches the fused network.
            fusion_student_weight: of what the student learns from the fused network.
            nce_weight: weight of InfoNCE in every pair.
            logit_weight: weight of the logit loss in every pair.

        Raises:
            UnsuitablePair: no live networks, too few stages, or a fused network that does not run.
            InputError: heads that do not fit each other, a negative weight, another option out of its range.
        """
        check_same_classes(student_spec, teacher_spec, num_classes=num_classes)
        check_gamma(gamma)
        check_positive({"temperature": temperature})
        pair_weights = dict(
            zip(PAIRS, (teacher_student_weight, teacher_fusion_weight, fusion_student_weight), strict=True)
        )
        weights = Weights(pair_weights, nce_weight, logit_weight, fusion_ce_weight)
        _check(weights, mlp_ratio=mlp_ratio, projection_dim=projection_dim, nce_temperature=nce_temperature)
        fusion = fusion_of(student_spec, teacher_spec, modules, order)
        specs = {"student": student_spec, "teacher": teacher_spec}
        specs["fusion"] = specs["teacher" if fusion.student_first else "student"]
        widths = {who: feature_dim(spec, vit_feature) for who, spec in specs.items()}
        bridge = level_bridge(fusion, mlp_ratio=mlp_ratio) if weights.fuse else None
        contrasts = {
            name: Contrast(
                widths[PAIRS[name][1]], widths[PAIRS[name][0]], projection_dim, nce_temperature, nce_symmetric
            )
            for name in weights.contrasted
        }
        logit_term = LogitTerm(logit_loss, form, gamma, temperature)
        return cls(fusion, bridge, contrasts, logit_term, weights, specs, vit_feature, detach_fusion)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """``{"teacher_student_nce": loss, "teacher_student_logits": loss, ...}``, for each pair both."""
        known = {"student": student, "teacher": teacher}
        if self.bridge is not None:
            known["fusion"] = self.fusion.outputs(self.bridge, student, teacher)
        weights, terms = self.weights, {}
        for name, loss in self._contrasted(known, batch.sample_id).items():
            terms[f"{name}_nce"] = weights.pairs[name] * weights.nce * loss
        for name, loss in self._matched(known, batch.target).items():
            terms[f"{name}_logits"] = weights.pairs[name] * weights.logits * loss
        if weights.fusion_ce:
            logits = known["fusion"].require("logits")
            # A mean over all samples, as the engine weighs micro-batches by their number of samples.
            hard = losses.cross_entropy(logits, batch.target, reduction="none").mean()
            terms["fusion_cross_entropy"] = weights.fusion_ce * hard
        return terms

    def _contrasted(self, known: Mapping[str, Outputs], sample_id: Tensor) -> dict[str, Tensor]:
        """InfoNCE of each pair, our own rows of the learner against all processes' rows of the source."""
        if not self.contrasts:
            return {}
        features = {who: self._feature(who, outputs) for who, outputs in known.items()}
        teaching = [PAIRS[name][0] for name in self.contrasts]
        sources = {who: self._as_source(who, features[who]) for who in teaching}
        everyone, offset = _of_all_processes({**sources, "ids": sample_id})
        excluded = same_image(sample_id, everyone["ids"])
        pair_losses = {}
        for name, contrast in self.contrasts.items():
            source, learner = PAIRS[name]
            pair_losses[name] = contrast(features[learner], everyone[source], offset, excluded)
        return pair_losses

    def _matched(self, known: Mapping[str, Outputs], target: Tensor) -> dict[str, Tensor]:
        """The logit loss of each pair."""
        logits = {who: outputs.require("logits") for who, outputs in known.items()}
        labels = losses.target_class(target, logits["teacher"])
        if self.logit_term.loss == "dist" and self.weights.matched:  # it compares samples with each other
            logits, _ = _of_all_processes(logits)
        pair_losses = {}
        for name in self.weights.matched:
            source, learner = PAIRS[name]
            pair_losses[name] = self.logit_term(logits[learner], self._as_source(source, logits[source]), labels)
        return pair_losses

    def _feature(self, who: str, outputs: Outputs) -> Tensor:
        stage = self.specs[who].stages[-1]
        if self.vit_feature == "patch_mean" and stage.num_prefix_tokens:
            return as_tokens(outputs.require_stages()[-1], stage, keep_prefix=False).mean(dim=1)
        return outputs.require("embedding")

    def _as_source(self, who: str, tensor: Tensor) -> Tensor:
        return tensor if who == "fusion" and not self.detach_fusion else tensor.detach()

    def measured(self) -> Mapping[str, nn.Module]:
        """The fused network, whose accuracy should come to lie between the student's and the teacher's."""
        return {} if self.bridge is None else {"fused": self.fusion.network(self.bridge)}

    def no_weight_decay(self) -> set[str]:
        """The bridge's prefix tokens and relative positions are no matrices of weights."""
        return {"bridge.prefix", "bridge.block.attn.relative_position_bias_table"}


def _of_all_processes(named: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """The same names with the rows of all processes, and where ours begin."""
    rows, offset = gather_rows(list(named.values()))
    return dict(zip(named, rows, strict=True)), offset


def feature_dim(spec: ModelSpec, vit_feature: Feature) -> int:
    """Width of the feature that is compared."""
    stage = spec.stages[-1]
    return stage.channels if vit_feature == "patch_mean" and stage.num_prefix_tokens else spec.embedding_dim


def _check(weights: Weights, *, mlp_ratio: float, projection_dim: int | None, nce_temperature: float) -> None:
    check_weights({f"{name}_weight": weight for name, weight in weights.pairs.items()})
    check_weights({"nce_weight": weights.nce, "logit_weight": weights.logits, "fusion_ce_weight": weights.fusion_ce})
    check_positive({"mlp_ratio": mlp_ratio, "projection_dim": 1 if projection_dim is None else projection_dim})
    if not LOWEST_TEMPERATURE <= nce_temperature <= HIGHEST_TEMPERATURE:
        raise InputError(
            f"nce_temperature={nce_temperature}",
            f"a number from {LOWEST_TEMPERATURE} to {HIGHEST_TEMPERATURE}, where it stays while it is learnt",
            "choose another nce_temperature",
        )

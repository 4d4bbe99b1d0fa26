"""Several methods at once: the weighted sum of their losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor

from crossdistill.contracts import Batch, Composite, Method, ModelSpec, Modules, Outputs
from crossdistill.errors import InputError, nearest
from crossdistill.losses.inputs import check_weights
from crossdistill.registry import METHODS

KD_AND_CRD: dict[str, dict[str, Any]] = {"kd": {}, "crd": {}}


@METHODS.register(
    "hybrid",
    title="Sum of methods",
    paper="Tian, Krishnan, Isola, ICLR 2020, arXiv 1910.10699 (CRD + KD)",
    summary="Any weighted sum of the other methods, each with its own options.",
    pick_when="one method on logits and one on features each help alone, and there is time to tune their weights",
)
class Hybrid(Composite):
    """Adds up what its parts say, each times its weight.

    A part that holds the hard-label term itself (``ofa`` with ``form=paper``) goes on holding it, times its weight, and
    the engine then adds none, whatever the other parts are. A part of weight 0 is left out altogether.

    Args:
        parts: the methods by name.
        weights: of some of them; the others count 1.
    """

    def __init__(self, parts: Mapping[str, Method], *, weights: Mapping[str, float]) -> None:
        super().__init__(parts)
        self.weights = {name: weights.get(name, 1.0) for name in parts}

    @classmethod
    def build(
        cls,
        student_spec: ModelSpec,
        teacher_spec: ModelSpec,
        parts: Mapping[str, Method],
        *,
        num_classes: int,
        modules: Modules | None = None,
        methods: dict[str, dict[str, Any]] = KD_AND_CRD,
        weights: dict[str, float] = {},  # noqa: B006 (never changed)
    ) -> Self:
        """Make it of methods that are built already.

        With several teachers each part follows its own rule: one on logits hears them as one, any other is made once a
        teacher.

        Args:
            student_spec: the student's facts.
            teacher_spec: the teacher's facts.
            parts: those of :meth:`counting`, built.
            num_classes: classes of the data.
            modules: not used.
            methods: registered names, each with the options of that method; default: the CRD paper's "CRD + KD".
            weights: factors of the parts' losses, 1 where none is given (our choice), beside the parts' own weights.

        Raises:
            InputError: no part, a part that cannot be one, a weight that is negative or of no part, or none above 0.
        """
        cls.check(methods=methods, weights=weights)
        return cls(parts, weights=weights)

    @classmethod
    def check(cls, *, methods: Mapping[str, Mapping[str, Any]], **options: Any) -> None:
        """Refuse parts and weights that do not fit together.

        Raises:
            InputError: naming them.
        """
        weights: Mapping[str, float] = options["weights"]
        if not methods:
            raise InputError("method.methods={}, a sum of nothing", "at least one method", "give {kd: {}, …}")
        for name in methods:
            value = METHODS.get(name).value
            if issubclass(value, Composite) or not value.needs:
                raise InputError(
                    f"method.methods with {name!r}, which " + ("is a sum itself" if value.needs else "has no loss"),
                    "methods that compare student and teacher",
                    "give its parts here" if value.needs else "leave it out",
                )
        for name in weights:
            if name not in methods:
                raise InputError(
                    f"method.weights with {name!r}", "the name of a method of the sum", nearest(name, methods)
                )
        check_weights({f"method.weights.{name}": weight for name, weight in weights.items()})
        if not cls.counting(methods=methods, weights=weights):
            raise InputError(
                f"method.weights={dict(weights)}, a sum of nothing",
                "a weight above 0",
                "raise one, or train the student alone (`crossdistill train`)",
            )

    @classmethod
    def counting(cls, *, methods: Mapping[str, Mapping[str, Any]], **options: Any) -> Mapping[str, Mapping[str, Any]]:
        """Those without a weight of 0."""
        return {name: given for name, given in methods.items() if options["weights"].get(name, 1.0) > 0}

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Every part's losses times its weight; a name that does not begin with the part's is put after it."""
        losses: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            found = part(student, teacher, batch).items()
            losses |= {self.named(name, loss): self.weights[name] * value for loss, value in found}
        return losses

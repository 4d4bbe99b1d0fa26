"""A sum of methods: weights, names, what it needs, and who holds the hard labels."""

import pytest
import torch
from torch import nn

from crossdistill.contracts import Batch, Method, Outputs
from crossdistill.errors import InputError
from crossdistill.registry import METHODS
from crossdistill.settings import resolve_options
from oracles import model_specs as specs

HYBRID = METHODS.get("hybrid").value
RANDOM = torch.Generator().manual_seed(0)
STUDENT = Outputs(*(torch.randn(4, width, generator=RANDOM) for width in (6, 512)))
TEACHER = Outputs(*(torch.randn(4, width, generator=RANDOM) for width in (6, 8)))
BATCH = Batch(images={}, target=torch.tensor([3, -1, 0, -1]), sample_id=torch.arange(4))
SPECS = specs.resnet18(6), specs.teacher(8, 6)


def build(methods, **weights):
    """The sum of the parts that count, each built for the one teacher."""
    HYBRID.check(methods=methods, weights=weights)
    counting = HYBRID.counting(methods=methods, weights=weights)
    parts = {
        name: METHODS.get(name).value.build(*SPECS, num_classes=6, **options) for name, options in counting.items()
    }
    return HYBRID.build(*SPECS, parts, num_classes=6, methods=methods, weights=weights)


def test_each_part_s_losses_are_scaled_by_its_weight():
    hybrid = build({"kd": {"temperature": 2.0}, "dist": {}, "rkd": {}}, kd=0.5, rkd=0.0)
    kd, dist = (METHODS.get(name).value for name in ("kd", "dist"))
    found = hybrid(STUDENT, TEACHER, BATCH)
    assert set(found) == {"kd", "dist"}
    alone = kd.build(*SPECS, num_classes=6, temperature=2.0)(STUDENT, TEACHER, BATCH)["kd"]
    torch.testing.assert_close(found["kd"], 0.5 * alone)
    torch.testing.assert_close(found["dist"], dist.build(*SPECS, num_classes=6)(STUDENT, TEACHER, BATCH)["dist"])
    assert hybrid.needs == {"logits"}


def test_the_default_is_the_published_sum():
    hybrid = build(resolve_options("hybrid", HYBRID.build, {})["methods"])
    assert set(hybrid(STUDENT, TEACHER, BATCH)) == {"kd", "crd_student", "crd_teacher"}
    assert hybrid.weights == {"kd": 1.0, "crd": 1.0}


@pytest.mark.parametrize(
    ("methods", "needs", "reads_stages", "relates_samples"),
    [
        ({"kd": {}}, {"logits"}, False, False),
        ({"kd": {}, "rsd": {}}, {"logits", "embedding"}, False, True),
        ({"kd": {}, "rsd": {"compare": "logits"}}, {"logits"}, False, True),
        ({"ofa": {}}, {"logits"}, True, False),
        ({"fitnet": {}, "dkd": {}}, {"logits", "stages"}, True, False),
    ],
)
def test_it_needs_what_its_parts_need(methods, needs, reads_stages, relates_samples):
    hybrid = build(methods)
    assert (hybrid.needs, hybrid.reads_stages, hybrid.relates_samples) == (needs, reads_stages, relates_samples)
    assert not hybrid.gathers_itself


def test_a_part_with_the_hard_label_term_keeps_it_and_the_engine_adds_none():
    paper = {"ofa": {"form": "paper"}, "kd": {}}
    assert build(paper).includes_cross_entropy
    assert build(paper, ofa=0.1).includes_cross_entropy
    assert not build(paper, ofa=0.0).includes_cross_entropy
    assert not build({"ofa": {}, "kd": {}}).includes_cross_entropy


class Part(Method):
    """Names its loss and its network without its own name."""

    gathers_itself = True

    @classmethod
    def build(cls, student_spec, teacher_spec, *, num_classes, modules=None):
        return cls()

    def forward(self, student, teacher, batch):
        return {"hint": torch.ones(())}

    def measured(self):
        return {"net": nn.Identity()}


def test_names_that_do_not_begin_with_the_part_s_get_it_in_front():
    hybrid = HYBRID({"one": Part(), "hint": Part()}, weights={"one": 2.0})
    assert {name: loss.item() for name, loss in hybrid(STUDENT, TEACHER, BATCH).items()} == {"one_hint": 2, "hint": 1}
    assert set(hybrid.measured()) == {"one_net", "hint_net"}
    assert hybrid.gathers_itself


@pytest.mark.parametrize(
    ("methods", "weights", "words"),
    [
        ({}, {}, "a sum of nothing"),
        ({"kd": {}, "hybrid": {}}, {}, "'hybrid', which is a sum itself"),
        ({"kd": {}, "none": {}}, {}, "'none', which has no loss"),
        ({"kdd": {}}, {}, "did you mean 'kd'"),
        ({"kd": {}, "dist": {}}, {"dits": 1.0}, r"method\.weights with 'dits'(.*\n)*.*did you mean 'dist'"),
        ({"kd": {}, "dist": {}}, {"kd": 0.0, "dist": 0.0}, r"method\.weights={.*a sum of nothing"),
        ({"kd": {}}, {"kd": -1.0}, r"method\.weights\.kd=-1\.0"),
        ({"kd": {}}, {"kd": float("nan")}, r"method\.weights\.kd=nan"),
        ({"kd": {"temperature": 0.0}}, {}, r"temperature=0\.0"),
    ],
)
def test_parts_and_weights_that_do_not_fit_are_refused(methods, weights, words):
    with pytest.raises(InputError, match=words):
        build(methods, **weights)

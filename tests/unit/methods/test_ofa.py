"""OFA: branches and their state, gammas, stages, and the two forms."""

import pytest
import torch

from crossdistill import losses
from crossdistill.contracts import Batch, Outputs, StageSpec
from crossdistill.errors import InputError
from crossdistill.registry import METHODS
from crossdistill.settings import resolve_options
from oracles import model_specs as specs

STUDENT = specs.model("net", "cnn", 32, [StageSpec(8, 4, "NCHW", 0, (6, 6)), StageSpec(16, 8, "NCHW", 0, (3, 3))], 6)
RANDOM = torch.Generator().manual_seed(0)
OUTPUTS = Outputs(
    logits=torch.randn(4, 6, generator=RANDOM),
    stages=(torch.randn(4, 8, 6, 6, generator=RANDOM), torch.randn(4, 16, 3, 3, generator=RANDOM)),
)
TEACHER = Outputs(logits=torch.randn(4, 6, generator=RANDOM))
BATCH = Batch(images={}, target=torch.tensor([3, -1, 0, -1]), sample_id=torch.arange(4))


def build(seed=0, **options):
    torch.manual_seed(seed)
    ofa = METHODS.get("ofa").value
    resolved = resolve_options("ofa", ofa.build, options)
    return ofa.build(STUDENT, specs.teacher(24, 6), num_classes=6, **resolved)


@pytest.mark.parametrize("form", ["code", "paper"])
def test_every_term_is_the_loss_of_its_logits_with_its_gamma(form):
    method = build(gamma=[1.0, 1.2, 1.5], temperature=2.0, form=form, kd_weight=0.5, branch_weight=0.1)
    labels = losses.target_class(BATCH.target, TEACHER.logits)

    def loss(logits, gamma):
        return losses.ofa(logits, TEACHER.logits, labels, gamma=gamma, temperature=2.0, form=form)

    actual = method(OUTPUTS, TEACHER, BATCH)
    expected = {
        "ofa_head": 0.5 * loss(OUTPUTS.logits, 1.5),
        "ofa_branch1": 0.1 * loss(method.branches["1"](OUTPUTS.stages[0]), 1.0),
        "ofa_branch2": 0.1 * loss(method.branches["2"](OUTPUTS.stages[1]), 1.2),
    }
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value)


def test_the_paper_form_includes_the_cross_entropy():
    assert build(form="paper").includes_cross_entropy
    assert not build(form="code").includes_cross_entropy
    assert not build(form="paper", kd_weight=0).includes_cross_entropy  # the engine's alone teaches the head then
    assert not METHODS.get("ofa").value.includes_cross_entropy


def test_branches_are_state_that_a_checkpoint_carries():
    first, second = build(seed=0).eval(), build(seed=1).eval()
    assert any(name.startswith("branches.2.classifier") for name in first.state_dict())
    assert first(OUTPUTS, TEACHER, BATCH)["ofa_branch1"] != second(OUTPUTS, TEACHER, BATCH)["ofa_branch1"]
    second.load_state_dict(first.state_dict())
    for name, value in first(OUTPUTS, TEACHER, BATCH).items():
        assert torch.equal(second(OUTPUTS, TEACHER, BATCH)[name], value)


@pytest.mark.parametrize(
    ("stages", "names"), [([2], ["ofa_branch2"]), ([2, 1], ["ofa_branch1", "ofa_branch2"]), ([], [])]
)
def test_stages_choose_the_branches(stages, names):
    terms = build(stages=stages)(OUTPUTS, TEACHER, BATCH)
    assert sorted(terms) == [*names, "ofa_head"]


def test_gammas_follow_the_order_of_the_stages():
    reordered = build(stages=[2, 1], gamma=[1.2, 1.0, 1.5])
    assert dict(zip(reordered.branches, reordered.gammas[:-1], strict=True)) == {"2": 1.2, "1": 1.0}
    assert reordered.gammas[-1] == 1.5
    assert build(gamma=2).gammas == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("stages", [[3], [0, 1], [-1], [1, 1]])
def test_a_stage_that_does_not_exist_is_refused(stages):
    with pytest.raises(InputError, match="student 'net' has 2 stages") as error:
        build(stages=stages)
    assert str(stages) in error.value.given


@pytest.mark.parametrize("gamma", [[1.0], [1.0, 1.2], [1.0] * 4])
def test_a_wrong_number_of_gammas_is_refused(gamma):
    with pytest.raises(InputError, match="2: one for the branch, then one for the head"):
        build(stages=[1], gamma=[1.0])
    with pytest.raises(InputError, match="3: one for each of 2 branches, then one for the head"):
        build(gamma=gamma)


@pytest.mark.parametrize("options", [{"gamma": 0.0}, {"gamma": [1.0, -1.0, 1.0]}, {"form": "book"}, {"stages": "all"}])
def test_other_options_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        build(**options)


def test_outputs_without_stages_are_a_programming_error():
    with pytest.raises(RuntimeError, match="no stages"):
        build()(Outputs(logits=OUTPUTS.logits), TEACHER, BATCH)

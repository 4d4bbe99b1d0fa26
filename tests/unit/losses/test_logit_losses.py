"""The logit losses against slow references, closed forms, invariances and finite differences."""

import importlib
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdistill import losses
from crossdistill.errors import InputError
from crossdistill.losses.ofa import ofa_of_each
from oracles import logit_losses as oracle

OPTIONS = {
    "kd": {"temperature": 3.0},
    "dkd": {"alpha": 0.7, "beta": 2.5, "temperature": 2.0},
    "dist": {"beta": 0.7, "gamma": 1.3, "temperature": 2.0},
    "ofa code": {"gamma": 1.4, "temperature": 2.0, "form": "code"},
    "ofa paper": {"gamma": 1.4, "temperature": 2.0, "form": "paper"},
}
PER_SAMPLE = [name for name in OPTIONS if name != "dist"]
every_loss = pytest.mark.parametrize("name", OPTIONS)
quick = settings(max_examples=25, deadline=None)


def call(name, student, teacher, labels, **changes):
    function = name.partition(" ")[0]
    with_labels = [labels] if function in ("dkd", "ofa") else []
    return getattr(losses, function)(student, teacher, *with_labels, **OPTIONS[name], **changes)


def batch(seed, size=5, num_classes=7, scale=3.0, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(2, size, num_classes, generator=random, dtype=torch.float64)).to(dtype)
    return student, teacher, torch.randint(num_classes, (size,), generator=random)


@every_loss
@quick
@given(seed=st.integers(0, 10**6), size=st.integers(2, 6), num_classes=st.integers(2, 9))
def test_agrees_with_the_slow_reference(name, seed, size, num_classes):
    student, teacher, labels = batch(seed, size, num_classes)
    arrays = [student.tolist(), teacher.tolist(), labels.tolist()]
    function = name.partition(" ")[0]
    inputs = arrays if function in ("dkd", "ofa") else arrays[:2]
    expected = torch.tensor(getattr(oracle, function)(*inputs, **OPTIONS[name]), dtype=torch.float64)
    if name in PER_SAMPLE:
        actual = call(name, student, teacher, labels, reduction="none")
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
    actual = call(name, student, teacher, labels)
    torch.testing.assert_close(actual, expected.mean(), rtol=1e-9, atol=1e-12)


@every_loss
def test_gradient_agrees_with_finite_differences(name):
    student, teacher, labels = batch(1, size=3, num_classes=4, scale=1.0)
    assert torch.autograd.gradcheck(partial(call, name, teacher=teacher, labels=labels), (student.requires_grad_(),))


@every_loss
@quick
@given(seed=st.integers(0, 10**6), shift=st.floats(-50, 50))
def test_a_constant_added_to_a_samples_logits_changes_nothing(name, seed, shift):
    student, teacher, labels = batch(seed)
    shifted = call(name, student + shift, teacher - shift, labels)
    torch.testing.assert_close(shifted, call(name, student, teacher, labels), rtol=1e-9, atol=1e-10)


@every_loss
@quick
@given(seed=st.integers(0, 10**6))
def test_order_of_classes_and_samples_is_immaterial(name, seed):
    student, teacher, labels = batch(seed)
    random = torch.Generator().manual_seed(seed)
    rows, columns = torch.randperm(5, generator=random), torch.randperm(7, generator=random)
    moved = call(name, student[rows][:, columns], teacher[rows][:, columns], columns.argsort()[labels[rows]])
    torch.testing.assert_close(moved, call(name, student, teacher, labels), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "tolerance"), [("kd", 1e-12), ("dkd", 1e-12), ("dist", 1e-5)])
def test_equal_logits_give_zero(name, tolerance):
    student, _, labels = batch(2)
    assert abs(call(name, student, student.clone(), labels).item()) < tolerance  # dist adds 1e-8 to the norms
    other = call(name, student, student.flip(1), labels)
    assert other.item() > 100 * tolerance


def test_kd_is_dkd_weighted_by_the_teachers_doubt():
    student, teacher, labels = batch(3, size=1)
    doubt = 1 - (teacher / 2.0).softmax(1)[0, labels[0]].item()
    decoupled = losses.dkd(student, teacher, labels, alpha=1.0, beta=doubt, temperature=2.0)
    torch.testing.assert_close(decoupled, losses.kd(student, teacher, temperature=2.0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("most_stacked", [0, 2**17], ids=["one by one", "stacked"])
@pytest.mark.parametrize("gammas", [[1.3] * 4, [1.0, 1.3, 1.0, 2.0]], ids=["one gamma", "several gammas"])
@pytest.mark.parametrize(("form", "temperature"), [("code", 1.0), ("paper", 2.0)])
def test_ofa_of_several_heads_is_that_of_each(monkeypatch, most_stacked, gammas, form, temperature):
    monkeypatch.setattr(importlib.import_module("crossdistill.losses.ofa"), "STACKED_ELEMENTS", most_stacked)
    _, teacher, labels = batch(0)
    heads = [batch(seed)[0].requires_grad_() for seed in range(4)]
    found = ofa_of_each(heads, teacher, labels, gammas=gammas, temperature=temperature, form=form)
    options = {"temperature": temperature, "form": form}
    expected = [losses.ofa(head, teacher, labels, gamma=g, **options) for head, g in zip(heads, gammas, strict=True)]
    for one, other in zip(found, expected, strict=True):
        assert one.shape == ()
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-14)
    gradients = [torch.autograd.grad(sum(terms), heads) for terms in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)


def test_ofa_of_several_heads_refuses_what_one_would():
    student, teacher, labels = batch(1)
    call = partial(ofa_of_each, [student, student], teacher, labels)
    with pytest.raises(InputError, match="gamma=0"):
        call(gammas=[1.0, 0.0], temperature=1.0)
    with pytest.raises(InputError, match="temperature=0"):
        call(gammas=[1.0, 1.0], temperature=0.0)
    with pytest.raises(InputError, match="form='book'"):
        call(gammas=[1.0, 1.0], temperature=1.0, form="book")
    with pytest.raises(InputError, match="student logits"):
        ofa_of_each([student, student[:2]], teacher, labels, gammas=[1.0, 1.0], temperature=1.0)
    with pytest.raises(InputError, match="0 gammas for 0 student logits"):
        ofa_of_each([], teacher, labels, gammas=[], temperature=1.0)
    for gammas in ([1.0], [1.0] * 3):  # equal ones, of which the others would be dropped in silence
        with pytest.raises(InputError, match=f"{len(gammas)} gammas for 2 student logits"):
            call(gammas=gammas, temperature=1.0)


def test_ofa_of_several_heads_widens_the_teacher_once(monkeypatch):
    student, teacher, labels = (one.half() if one.is_floating_point() else one for one in batch(1))
    module, seen = importlib.import_module("crossdistill.losses.ofa"), []
    pair = module.logit_pair
    monkeypatch.setattr(module, "logit_pair", lambda one, other: seen.append(other.dtype) or pair(one, other))
    found = ofa_of_each([student, student.double(), student], teacher, labels, gammas=[1.0] * 3, temperature=1.0)
    assert seen == [torch.float16, torch.float32, torch.float64]
    assert {one.dtype for one in found} == {torch.float64}
    monkeypatch.setattr(module, "logit_pair", pair)
    expected = losses.ofa(student, teacher, labels, gamma=1.0, temperature=1.0)
    torch.testing.assert_close(found[0].float(), expected)


def test_ofa_of_several_heads_stacks_by_the_device():
    stacks = importlib.import_module("crossdistill.losses.ofa")._stacks
    for device, many, most in (("cpu", 2, 2**17), ("meta", 2, 2**26)):  # on others a bound in bytes, here of float32
        halves = [torch.empty(most // many, device=device) for _ in range(many)]
        assert stacks(halves)
        assert not stacks([*halves, torch.empty(1, device=device)])


def test_ofa_forms_differ_by_the_cross_entropy_at_gamma_one_only():
    student, teacher, labels = batch(4)

    def difference(gamma):
        form = partial(losses.ofa, student, teacher, labels, gamma=gamma, temperature=1.0)
        return form(form="paper") - form(form="code")

    torch.testing.assert_close(difference(1.0), losses.cross_entropy(student, labels), rtol=1e-12, atol=0)
    assert abs(difference(1.5) - losses.cross_entropy(student, labels)) > 1e-3


@pytest.mark.parametrize(
    ("gamma", "temperature", "code", "paper"),
    [
        (1.0, 1.0, 1.480239, 2.361272),
        (1.2, 1.0, 1.443506, 2.552542),
        (1.5, 1.0, 1.569230, 2.885869),
        (2.0, 1.0, 2.102746, 3.593492),
        (1.0, 2.0, 1.394318, 2.379773),
        (1.5, 2.0, 1.225845, 2.716091),
    ],
)
def test_ofa_test_vectors(gamma, temperature, code, paper):
    student = torch.tensor([[2, 0.5, -1, 0], [0, 1, 2, -2]], dtype=torch.float64)
    teacher = torch.tensor([[1, 1, 0, -1], [0, 3, 0.5, -0.5]], dtype=torch.float64)
    both = [
        losses.ofa(student, teacher, torch.tensor([0, 1]), gamma=gamma, temperature=temperature, form=form).item()
        for form in ("code", "paper")
    ]
    assert both == pytest.approx([code, paper], abs=5e-7)


@pytest.mark.parametrize("num_classes", [100, 1000])
def test_ofa_of_an_untrained_student_is_the_log_of_the_number_of_classes(num_classes):
    _, teacher, labels = batch(5, num_classes=num_classes)
    loss = losses.ofa(torch.zeros_like(teacher), teacher, labels, gamma=1.0, temperature=1.0)
    torch.testing.assert_close(loss, torch.tensor(num_classes, dtype=torch.float64).log())


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arrangement", ["agree", "disagree", "mixed"])
def test_finite_at_logits_of_200(name, dtype, arrangement):
    signs = torch.tensor([[1, -1, -1, -1], [-1, -1, 1, -1], [1, 1, -1, -1], [-1, -1, -1, -1]])
    student = (200.0 * signs).to(dtype).requires_grad_()
    teacher = {"agree": 200.0 * signs, "disagree": -200.0 * signs, "mixed": signs.roll(1, 0) * 0.5}[arrangement]
    labels = torch.tensor([0, 0, 1, 3])
    loss = call(name, student, teacher.to(dtype), labels)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


@every_loss
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_computes_in_float32_or_wider_also_inside_autocast(name, dtype, expected):
    student, teacher, labels = batch(6, dtype=dtype)
    outside = call(name, student, teacher, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = call(name, student, teacher, labels)
    assert inside.dtype == expected
    assert torch.equal(inside, outside)


@every_loss
def test_other_shapes_are_refused_with_both(name):
    with pytest.raises(InputError, match=r"\(2, 3\) and teacher logits \(2, 4\)"):
        call(name, torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("name", ["dkd", "ofa code"])
@pytest.mark.parametrize("labels", [torch.zeros(3, dtype=torch.int64), torch.zeros(2), torch.zeros(2, 3)])
def test_other_labels_are_refused(name, labels):
    with pytest.raises(InputError, match="labels"):
        call(name, torch.zeros(2, 3), torch.zeros(2, 3), labels)


@every_loss
def test_temperature_must_be_positive(name):
    student, teacher, labels = batch(7)
    function = name.partition(" ")[0]
    with_labels = [labels] if function in ("dkd", "ofa") else []
    with pytest.raises(InputError, match=r"temperature=0\.0"):
        getattr(losses, function)(student, teacher, *with_labels, **{**OPTIONS[name], "temperature": 0.0})


@pytest.mark.parametrize("gamma", [0.0, -1.0, 16.5, 128.0, float("inf"), float("nan")])
@pytest.mark.parametrize("form", ["code", "paper"])
def test_a_gamma_that_is_not_above_zero_or_only_overflows_is_refused(form, gamma):
    student, teacher, labels = (tensor.float() if tensor.is_floating_point() else tensor for tensor in batch(7))
    assert losses.ofa(student, teacher, labels, gamma=16.0, temperature=0.01, form=form).isfinite()
    with pytest.raises(InputError, match="gamma above 0, at most 16"):
        losses.ofa(student, teacher, labels, gamma=gamma, temperature=1.0, form=form)


def test_unknown_form_and_reduction_and_a_single_class_are_refused():
    student, teacher, labels = batch(8)
    with pytest.raises(InputError, match="'code' or 'paper'"):
        losses.ofa(student, teacher, labels, gamma=1.0, temperature=1.0, form="book")
    with pytest.raises(InputError, match="reduction='sum'"):
        losses.kd(student, teacher, temperature=1.0, reduction="sum")
    with pytest.raises(InputError, match="at least two classes"):
        losses.dkd(student[:, :1], teacher[:, :1], labels * 0, alpha=1.0, beta=1.0, temperature=1.0)


@quick
@given(seed=st.integers(0, 10**6), scale=st.floats(0.5, 20), shift=st.floats(-20, 20))
def test_standardized_logits_are_z_scores_blind_to_range(seed, scale, shift):
    logits, _, _ = batch(seed)
    actual = losses.standardize(logits)
    torch.testing.assert_close(actual, torch.tensor(oracle.standardize(logits)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(losses.standardize(scale * logits + shift), actual, rtol=1e-5, atol=1e-5)


def test_standardizing_equal_logits_is_finite():
    logits = torch.full((2, 5), 3.0, requires_grad=True)
    losses.kd(losses.standardize(logits), torch.randn(2, 5), temperature=1.0).backward()
    assert logits.grad.isfinite().all()

"""Cross-entropy to hard, soft and missing labels."""

import pytest
import torch

from crossdistill import losses
from crossdistill.errors import InputError
from oracles import logit_losses as oracle


def logits_of(seed, size=6, num_classes=5):
    return torch.randn(size, num_classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_skips_unlabelled_samples(label_smoothing):
    logits, target = logits_of(0), torch.tensor([0, -1, 4, -1, 2, 2])
    actual = losses.cross_entropy(logits, target, label_smoothing=label_smoothing)
    expected = oracle.cross_entropy(logits.tolist(), target.tolist(), label_smoothing=label_smoothing)
    assert actual.item() == pytest.approx(expected, rel=1e-12)
    per_sample = losses.cross_entropy(logits, target, label_smoothing=label_smoothing, reduction="none")
    assert per_sample.shape == (6,)
    assert per_sample[[1, 3]].tolist() == [0.0, 0.0]


def soft_targets():
    """Four mixtures of two labels, one of them with a partner of its own class, and two rows without a label."""
    target = torch.zeros(6, 5, dtype=torch.float64)
    for row, (first, second, share) in {0: (0, 3, 0.3), 2: (4, 4, 0.6), 3: (1, 2, 0.5), 5: (2, 0, 0.9)}.items():
        target[row, first] += share
        target[row, second] += 1 - share
    return target


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("class_weights", [None, [0.2, 3.0, 1.0, 0.5, 2.0]], ids=["equal", "weighted"])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_equals_the_sum_written_out(kind, class_weights, label_smoothing):
    logits, target = logits_of(4), soft_targets() if kind == "soft" else torch.tensor([0, -1, 4, -1, 2, 2])
    weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float64)
    options = {"label_smoothing": label_smoothing, "class_weights": weights}
    expected = oracle.cross_entropy(logits.tolist(), target.tolist(), **options | {"class_weights": class_weights})
    assert losses.cross_entropy(logits, target, **options).item() == pytest.approx(expected, rel=1e-12)
    per_sample = losses.cross_entropy(logits, target, **options, reduction="none")
    labelled = [1, 4] if kind == "soft" else [1, 3]
    assert per_sample[labelled].tolist() == [0.0, 0.0]
    assert per_sample.sum().item() == pytest.approx(4 * expected, rel=1e-12)


def test_class_weights_agree_with_pytorchs_but_for_the_divisor():
    logits, target, weights = logits_of(5), torch.tensor([0, 1, 4, -1, 2, 2]), torch.tensor([0.2, 3.0, 1.0, 0.5, 2.0])
    theirs = torch.nn.functional.cross_entropy(
        logits, target, weights.double(), ignore_index=-1, reduction="sum", label_smoothing=0.1
    )
    ours = losses.cross_entropy(logits, target, label_smoothing=0.1, class_weights=weights)
    torch.testing.assert_close(ours, theirs / 5, rtol=1e-6, atol=0)  # the weights are float32


def test_means_over_parts_add_up_by_their_labels():
    """So that micro-batches and processes may hold different classes."""
    logits, target, weights = logits_of(6), torch.tensor([0, -1, 4, -1, 2, 2]), torch.tensor([0.2, 3.0, 1.0, 0.5, 2.0])
    whole = losses.cross_entropy(logits, target, class_weights=weights)
    parts = [losses.cross_entropy(logits[part], target[part], class_weights=weights) for part in ([0, 1], [2, 3, 4, 5])]
    torch.testing.assert_close(whole, parts[0] / 4 + parts[1] * 3 / 4)


@pytest.mark.parametrize("soft", [False, True])
def test_unlabelled_samples_get_no_gradient_whatever_the_target(soft):
    logits, target = logits_of(1).requires_grad_(), soft_targets() if soft else torch.tensor([0, -1, 4, 1, -1, 2])
    losses.cross_entropy(logits, target, label_smoothing=0.1).backward()
    assert (logits.grad[[1, 4]] == 0).all()
    assert (logits.grad[[0, 2, 3, 5]] != 0).all()


def test_nothing_labelled_in_soft_targets_gives_a_zero_that_can_be_differentiated():
    logits = logits_of(2).requires_grad_()
    loss = losses.cross_entropy(logits, torch.zeros(6, 5), label_smoothing=0.1)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_another_number_of_class_weights_is_refused():
    with pytest.raises(InputError, match=r"class weights \(3,\) for logits \(6, 5\)"):
        losses.cross_entropy(logits_of(0), torch.zeros(6, dtype=torch.int64), class_weights=torch.ones(3))


def test_nothing_labelled_gives_a_zero_that_can_be_differentiated():
    logits = logits_of(2).requires_grad_()
    loss = losses.cross_entropy(logits, torch.full((6,), -1))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_soft_target_is_the_mixture_of_hard_ones():
    logits, first, second = logits_of(3), torch.arange(5).repeat(2)[:6], torch.arange(5).flip(0).repeat(2)[:6]
    one_hot = torch.eye(5)
    mixed = losses.cross_entropy(logits, 0.3 * one_hot[first] + 0.7 * one_hot[second], label_smoothing=0.1)
    parts = [losses.cross_entropy(logits, labels, label_smoothing=0.1) for labels in (first, second)]
    torch.testing.assert_close(mixed, 0.3 * parts[0] + 0.7 * parts[1], rtol=1e-6, atol=0)  # one_hot is float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_and_float32_at_logits_of_200(dtype):
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], dtype=dtype, requires_grad=True)
    loss = losses.cross_entropy(logits, torch.tensor([0, 0]), label_smoothing=0.1)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.5 * (0.05 * 400 + 0.95 * 400), rel=1e-6)
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    "target",
    [torch.zeros(3), torch.zeros(4, dtype=torch.int64), torch.zeros(3, 4), torch.ones(3, 2, dtype=torch.int64)],
)
def test_other_targets_are_refused(target):
    with pytest.raises(InputError, match=r"for logits \(3, 2\)"):
        losses.cross_entropy(torch.zeros(3, 2), target)
    with pytest.raises(InputError, match=r"for logits \(3, 2\)"):
        losses.target_class(target, torch.zeros(3, 2))


def test_target_class_is_label_or_likeliest_or_the_teachers():
    teacher = torch.tensor([[0.0, 1.0, 0.5], [2.0, 1.0, 0.5], [0.0, 1.0, 5.0]])
    assert losses.target_class(torch.tensor([2, -1, -1]), teacher).tolist() == [2, 0, 2]
    soft = torch.tensor([[0.4, 0.6, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    assert losses.target_class(soft, teacher).tolist() == [1, 0, 2]  # a tie goes to the lower class
    soft[1:] = 0.0  # no label
    assert losses.target_class(soft, teacher).tolist() == [1, 0, 2]
    assert losses.target_class(soft, -teacher).tolist() == [1, 2, 0]

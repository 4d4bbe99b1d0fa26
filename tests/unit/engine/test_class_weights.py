"""Class weights: what "balanced" means, what reaches the hard-label term and nothing else, and what is refused."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from crossdistill.engine import fit
from crossdistill.engine.class_weights import class_weights
from crossdistill.engine.log import read
from crossdistill.errors import InputError
from crossdistill.losses import cross_entropy
from crossdistill.teachers import FrozenTeacher
from samples.training import Match, SmallNet, TensorLoader, settings

LABELS = np.array([0, 0, 0, 0, 0, 1, 2, 2, 2, 3])


def test_balanced_is_what_scikit_learn_calls_so():
    expected = compute_class_weight("balanced", classes=np.arange(4), y=LABELS)
    weights = class_weights(settings(class_weights="balanced"), np.bincount(LABELS), 4)
    assert weights.tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert weights[LABELS].sum().item() == pytest.approx(len(LABELS))


def test_numbers_are_taken_as_they_are_and_none_is_none():
    assert class_weights(settings(class_weights=[1, 2.5, 3]), None, 3).tolist() == [1.0, 2.5, 3.0]
    assert class_weights(settings(), np.bincount(LABELS), 4) is None


@pytest.mark.parametrize(
    ("given", "counts", "words"),
    [
        ((1.0, 2.0), None, "2 class_weights for 4 classes"),
        ((1.0, 2.0, 0.0, 1.0), None, "0.0 for class 2"),
        ((1.0, -2.0, 3.0, 1.0), None, "-2.0 for class 1"),
        ("balanced", [3, 0, 1, 2], "no labelled image of class 1"),
        ("balanced", [3, 1, 2], "images of 3 classes, for 4 classes"),
        ("balanced", None, "not counted by class"),
    ],
)
def test_weights_that_do_not_fit_are_refused(given, counts, words):
    with pytest.raises(InputError, match=words):
        class_weights(settings(class_weights=given), counts, 4)


def train(out, loader=None, **changes):
    """Two steps; the first line of the log, and the student."""
    student, teacher = SmallNet(seed=1), FrozenTeacher(SmallNet(seed=2))
    changes = {"steps": 2, "log_every": 1, **changes}
    fit(student, Match(), teacher, loader or TensorLoader(), None, settings=settings(**changes), device="cpu", out=out)
    return read(out / "metrics.jsonl")[0]["losses"], student.state_dict()


def test_they_change_the_hard_label_term_and_no_other_loss(tmp_path):
    loader = TensorLoader(unlabelled=5)
    equal, _ = train(tmp_path / "equal", loader)
    weighted, _ = train(tmp_path / "weighted", loader, class_weights="balanced", cross_entropy_weight=2.0)
    batch = next(loader.epoch(0))[0]
    labelled = loader.target[loader.target >= 0].numpy()
    weights = torch.tensor(compute_class_weight("balanced", classes=np.arange(4), y=labelled))
    logits = SmallNet(seed=1)(batch.images["student"]).logits
    expected = 2 * cross_entropy(logits, batch.target, class_weights=weights).item()
    assert weighted.pop("cross_entropy") == pytest.approx(expected, rel=1e-5)
    assert abs(equal.pop("cross_entropy") * 2 - expected) > 0.01
    assert weighted == equal


def test_micro_batches_of_other_classes_add_up_to_the_large_batch(tmp_path):
    """Division by the summed weights of each part would not."""
    changes = {"class_weights": (0.1, 5.0, 1.0, 2.0), "label_smoothing": 0.1}
    _, whole = train(tmp_path / "whole", TensorLoader(unlabelled=3), **changes)
    _, parts = train(tmp_path / "parts", TensorLoader(unlabelled=3, micro_batch=5), **changes)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-4, atol=1e-6)


def test_balancing_needs_a_loader_that_counts(tmp_path):
    class Streams:
        steps_per_epoch = 4
        epoch = TensorLoader().epoch

    with pytest.raises(InputError, match="not counted by class"):
        train(tmp_path, Streams(), class_weights="balanced")

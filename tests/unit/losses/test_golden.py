"""Every value and gradient of golden/logit_losses.npz, which the published implementations computed."""

import re

import numpy as np
import pytest
import torch

from crossdistill import losses

RELATIVE = 1e-8
CASES = ("case0", "case1")
LOGIT_LOSSES = [
    *(f"ofa_gamma{gamma}_T{temperature}" for gamma in (1.0, 1.1, 1.5, 2.0) for temperature in (1.0, 4.0)),
    *("kd_T1.0", "kd_T4.0"),
    *("dkd_alpha1.0_beta8.0_T4.0", "dkd_alpha1.0_beta2.0_T1.0"),
    *("dist_beta1.0_gamma1.0_T1.0", "dist_beta2.0_gamma2.0_T4.0"),
]
INPUTS = {"student_logits", "teacher_logits", "labels", "student_embedding", "teacher_embedding"}
CORRELATION = {"cc_student_embed", "cc_teacher_embed", "cc_delta_product_mean"}


@pytest.fixture(scope="module")
def golden(shared):
    with np.load(shared("golden/logit_losses.npz"), allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def assert_close(actual, expected):
    torch.testing.assert_close(actual.detach(), expected, rtol=RELATIVE, atol=0.0)


@pytest.mark.parametrize("entry", LOGIT_LOSSES)
@pytest.mark.parametrize("case", CASES)
def test_logit_loss_and_gradient(golden, case, entry):
    name = entry.partition("_")[0]
    options = {key: float(value) for key, value in re.findall(r"([A-Za-z]+)([\d.]+)", entry)}
    options["temperature"] = options.pop("T")
    student = golden[f"{case}/student_logits"].clone().requires_grad_()
    labels = [golden[f"{case}/labels"]] if name in ("ofa", "dkd") else []
    loss = getattr(losses, name)(student, golden[f"{case}/teacher_logits"], *labels, **options)
    loss.backward()
    assert_close(loss, golden[f"{case}/{entry}/loss"])
    assert_close(student.grad, golden[f"{case}/{entry}/grad_student"])


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_relational_losses_and_gradient(golden, case, squared):
    student = golden[f"{case}/student_embedding"].clone().requires_grad_()
    teacher = golden[f"{case}/teacher_embedding"]
    distance, angle = losses.rkd_distance(student, teacher, squared=squared), losses.rkd_angle(student, teacher)
    (25 * distance + 50 * angle).backward()
    entry = f"{case}/rkd_squared{squared}"
    assert_close(distance, golden[f"{entry}/distance_loss"])
    assert_close(angle, golden[f"{entry}/angle_loss"])
    assert_close(student.grad, golden[f"{entry}/grad_student_25d_50a"])


@pytest.mark.parametrize("case", CASES)
def test_relational_losses_and_gradient_in_chunks(golden, case, monkeypatch):
    monkeypatch.setattr(losses.relational, "CHUNK_ELEMENTS", 1)  # one anchor at a time
    test_relational_losses_and_gradient(golden, case, squared=False)


@pytest.mark.parametrize("case", CASES)
def test_correlation_and_gradient(golden, case):
    """The file holds no gradient; of a product of absolute errors it is the sign times the neighbours' errors."""
    student, teacher = golden[f"{case}/cc_student_embed"].clone().requires_grad_(), golden[f"{case}/cc_teacher_embed"]
    loss = losses.correlation(student, teacher)
    loss.backward()
    assert_close(loss, golden[f"{case}/cc_delta_product_mean"])
    delta = student.detach() - teacher
    neighbours = torch.zeros_like(delta)
    neighbours[1:] += delta[:-1].abs()
    neighbours[:-1] += delta[1:].abs()
    assert_close(student.grad, delta.sign() * neighbours / (len(delta) - 1))


def test_nothing_in_the_file_is_left_out(golden):
    parts = {f"{entry}/{part}" for entry in LOGIT_LOSSES for part in ("loss", "grad_student")}
    relational = ("distance_loss", "angle_loss", "grad_student_25d_50a")
    parts |= {f"rkd_squared{squared}/{part}" for squared in (False, True) for part in relational}
    assert set(golden) == {f"{case}/{part}" for case in CASES for part in parts | INPUTS | CORRELATION}

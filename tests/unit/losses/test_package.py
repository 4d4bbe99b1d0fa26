"""The package as a whole: documented examples run, importing it is light, nothing waits for the device."""

import doctest
import inspect
import subprocess
import sys

import pytest
import torch

from crossdistill import losses
from crossdistill.losses.direction import unit
from crossdistill.losses.inputs import widen


@pytest.mark.parametrize("function", [*(getattr(losses, name) for name in losses.__all__), unit, widen])
def test_documented_examples(function):
    name = function.__name__
    module = inspect.getmodule(function)
    (example,) = doctest.DocTestFinder(recurse=False).find(function, name, globs=vars(module).copy())
    assert example.examples, f"{name} shows no example"
    assert doctest.DocTestRunner().run(example).failed == 0


def test_importing_needs_torch_only():
    heavy = "timm torchvision pydantic accelerate sklearn"
    code = f"import sys, crossdistill.losses; print([name for name in {heavy.split()} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def every_loss(device):
    """The sum of all losses and its gradient."""
    student, teacher = torch.randn(2, 8, 5, device=device)
    student.requires_grad_()
    labels = torch.zeros(8, dtype=torch.int64, device=device)
    target = losses.target_class(labels, teacher)
    total = losses.kd(losses.standardize(student), teacher, temperature=4.0) + losses.cross_entropy(student, labels)
    total = total + losses.dkd(student, teacher, target, alpha=1.0, beta=2.0, temperature=1.0)
    total = total + losses.dist(student, teacher, beta=1.0, gamma=1.0, temperature=1.0)
    total = total + losses.ofa(student, teacher, target, gamma=1.5, temperature=1.0)
    total = total + losses.rkd_distance(student, teacher)
    if device != "meta":  # where autocast, which this one switches off, is unknown
        total = total + losses.rkd_angle(student, teacher) + losses.rsd(student, teacher, kappa=0.01)
        excluded = torch.ones(8, 8, dtype=torch.bool, device=device).triu(2)
        temperature = torch.full((1,), 0.1, device=device)
        total = total + losses.info_nce(student, teacher, temperature=temperature, excluded=excluded)
    total = total + losses.noise_contrastive(student[:, 0], student, student > 0, log_mean=0.0)
    (total + losses.correlation(student, teacher)).backward()
    return student.grad


def test_no_value_is_read():
    assert every_loss("meta").shape == (8, 5)  # tensors on this device have no values


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_nothing_waits_for_the_device():
    every_loss("cuda")  # the first call loads kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradient = every_loss("cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert gradient.isfinite().all()

"""OFA's figures for the published pairs, from the real networks at 224 px: the parameters of every exit branch.

Source: Hao, Guo, Han, Tang, Hu, Wang, Xu, NeurIPS 2023, arXiv 2310.19444, in the layers of the released code. Networks
and branches lie on the meta device: every shape is real, no number is computed.
"""

from functools import cache

import pytest
import torch

from crossdistill.contracts import Batch, Outputs
from crossdistill.models import build
from crossdistill.registry import METHODS

SWIN_T, VIT_S, MIXER_B = "swin_tiny_patch4_window7_224", "vit_small_patch16_224", "mixer_b16_224"
DEIT_T, RESMLP = "deit_tiny_patch16_224", "resmlp_12_224"

# student, classes, teacher, parameters of the student, of its branches by stage, and of all branches
PAIRS = [
    ("resnet18", 100, SWIN_T, 11_227_812, (411_748, 397_924, 345_700, 470_884), 1_626_256),
    ("resnet18", 100, MIXER_B, 11_227_812, (411_748, 397_924, 345_700, 470_884), 1_626_256),
    ("resnet18", 100, VIT_S, 11_227_812, (320_100, 306_276, 254_052, 313_956), 1_194_384),
    ("mobilenetv2_100", 100, SWIN_T, 2_351_972, (275_044, 221_796, 264_676, 1_767_780), 2_529_296),
    (DEIT_T, 100, "convnext_tiny", 5_543_716, (1_501_156, 1_056_868, 612_580, 612_580), 3_783_184),
    ("swin_pico", 100, MIXER_B, 5_160_496, (6_618_340, 4_326_244, 2_108_260, 1_811_812), 14_864_656),
    (RESMLP, 100, "convnext_tiny", 15_004_372, (5_951_332, 4_178_020, 2_404_708, 2_404_708), 14_938_768),
    ("resnet18", 1000, DEIT_T, 11_689_512, (781_800, 767_976, 715_752, 775_656), 3_041_184),
    ("mobilenetv2_100", 1000, DEIT_T, 3_504_872, (1_427_944, 1_374_696, 1_417_576, 2_920_680), 7_140_896),
    (DEIT_T, 1000, "resnet50", 5_717_416, (1_674_856, 1_230_568, 786_280, 786_280), 4_477_984),
    ("swin_nano", 1000, "resnet50", 9_599_940, (12_202_472, 8_130_536, 4_190_184, 3_663_848), 28_187_040),
    (RESMLP, 1000, SWIN_T, 15_350_872, (6_297_832, 4_524_520, 2_751_208, 2_751_208), 16_324_768),
]


@cache
def network(name, num_classes):
    with torch.device("meta"):
        return build(f"timm/{name}", num_classes=num_classes)


def num_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def ofa(student, teacher, num_classes):
    with torch.device("meta"):
        return METHODS.get("ofa").value.build(student.spec, teacher.spec, num_classes=num_classes)


@pytest.mark.parametrize(
    ("student_name", "num_classes", "teacher_name", "student_size", "branch_sizes", "total"), PAIRS
)
def test_branches_of_the_published_pairs_have_the_published_sizes(
    student_name, num_classes, teacher_name, student_size, branch_sizes, total
):
    student, teacher = network(student_name, num_classes), network(teacher_name, num_classes)
    method = ofa(student, teacher, num_classes)
    assert student.spec.num_parameters == num_parameters(student) == student_size
    assert tuple(num_parameters(method.branches[str(number)]) for number in range(1, 5)) == branch_sizes
    assert num_parameters(method) == total


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", DEIT_T, "swin_pico", RESMLP])
def test_branches_take_the_stages_that_the_network_gives(name):
    student, teacher = network(name, 100), network(SWIN_T, 100)
    method = ofa(student, teacher, 100)
    with torch.device("meta"):
        outputs = student(torch.empty(2, 3, 224, 224))
        logits = [branch(outputs.stages[int(number) - 1]) for number, branch in method.branches.items()]
        batch = Batch({}, torch.zeros(2, dtype=torch.int64), torch.arange(2))
        losses = method(outputs, Outputs(logits=torch.empty(2, 100)), batch)
    assert [tuple(one.shape) for one in logits] == [(2, 100)] * 4
    assert {name: loss.shape for name, loss in losses.items()} == {
        "ofa_head": (),
        **{f"ofa_branch{number}": () for number in range(1, 5)},
    }

"""Where the time of a step goes on a GPU: the device's work and idleness add up to it."""

import json

import pytest
import torch

from crossdistill import cli

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("method", ["kd", "ofa", "fbt"])
def test_the_parts_add_up_to_the_step(method, capsys):
    line = (
        f"bench speed --teacher timm/test_vit --student timm/test_resnet --method {method} --data digits --device cuda "
        "--image-size 32 teachers.0.image_size=32 --batch-size 64 --steps 10 --json"
    )
    assert cli.run(line.split()) == 0
    figures = json.loads(capsys.readouterr().out)
    parts = figures["parts"]
    assert figures["profiled"]["on_device"]
    assert sum(part["share"] for part in parts) == pytest.approx(1)
    assert 0.9 < sum(part["ms"] for part in parts) / figures["profiled"]["ms"] < 1.001
    busy = {part["name"]: part["busy_ms"] for part in parts}
    assert all(busy[name] > 0 for name in ("teacher", "student", "loss", "backward", "optimizer"))
    assert figures["peak_memory_bytes"] > 2**20

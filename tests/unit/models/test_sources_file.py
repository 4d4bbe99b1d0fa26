"""``file:net.py:build``: run only when allowed, and every way in which such a file can be wrong."""

import json
import pickle
import sys

import pytest
import safetensors.torch
import torch

from crossdistill.errors import InputError
from crossdistill.export import export_student
from crossdistill.models import build

NAMES = ("ant", "bee", "cat")
NET = """
from torch import nn
from neighbour import WIDTH

print("this file was run")

class Net(nn.Module):
    def __init__(self, num_classes, width):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, stride=4)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(3))
        self.head = nn.Linear(width, num_classes)

    def forward(self, images):
        x = self.stem(images)
        for block in self.blocks:
            x = block(x).relu()
        return self.head(x.mean(dim=(2, 3)))

def build(num_classes, image_size=64, width=WIDTH):
    net = Net(num_classes, width)
    net.pretrained_cfg = {"input_size": (3, image_size, image_size), "mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)}
    return net
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "neighbour.py").write_text("WIDTH = 8\n")
    path = tmp_path / "net.py"
    path.write_text(NET)
    return path


def test_a_file_is_not_run_without_leave(file, capsys):
    with pytest.raises(InputError, match=r"a Python file that would be run[\s\S]*--allow-code"):
        build(f"file:{file}:build", num_classes=3)
    assert capsys.readouterr().out == ""


def test_the_function_s_network_is_built_and_staged(file):
    model = build(f"file:{file}:build", num_classes=3, image_size=96, width=16, allow_code=True)
    assert model.spec.name == f"file:{file}:build"
    assert model.spec.num_classes == 3
    assert model.spec.input.image_size == (96, 96)
    assert model.spec.input.mean == (0.1, 0.2, 0.3)
    assert [stage.channels for stage in model.spec.stages] == [16] * 4
    assert build(f"file:{file}:build", num_classes=3, allow_code=True).spec.input.image_size == (64, 64)


def test_weights_are_loaded_and_an_export_is_a_name_again(file, tmp_path):
    name = f"file:{file}:build"
    model = build(name, num_classes=3, width=16, image_size=32, class_names=NAMES, allow_code=True)
    folder = export_student(model, tmp_path / "m", class_names=NAMES, metrics={})
    assert json.loads((folder / "config.json").read_text())["model_args"] == {"width": 16, "img_size": [32, 32]}
    with pytest.raises(InputError, match="--allow-code"):
        build(str(folder))
    again = build(str(folder), allow_code=True)
    assert again.spec == model.spec
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(again.eval()(images).logits, model.eval()(images).logits)
    weights = tmp_path / "w.safetensors"
    safetensors.torch.save_file(model.net.state_dict(), weights)
    loaded = build(f"{name}@{weights}", num_classes=3, width=16, allow_code=True)
    assert torch.equal(loaded.net.head.weight, model.net.head.weight)
    with pytest.raises(InputError, match=r"w.safetensors: stem.weight \(16, 3, 4, 4\), not \(8, 3, 4, 4\)"):
        build(f"{name}@{weights}", num_classes=3, allow_code=True)


def test_a_moved_file_still_takes_its_export(file, tmp_path):
    model = build(f"file:{file}:build", num_classes=3, class_names=NAMES, allow_code=True)
    folder = export_student(model, tmp_path / "m", class_names=NAMES, metrics={})
    moved = file.rename(tmp_path / "moved.py")
    with pytest.raises(InputError, match=r"names the architecture [\s\S]*net.py does not exist"):
        build(str(folder), allow_code=True)
    assert build(f"file:{moved}:build@{folder}", allow_code=True).spec.class_names == NAMES


@pytest.mark.parametrize(
    ("code", "function", "message"),
    [
        ("def build(num_classes):\n    return 1 / 0\n", "build", r"in line 2 \(return 1 / 0\): ZeroDivisionError"),
        ("def build(num_classes:\n", "build", r"in line 1: SyntaxError"),
        ("import no_such_thing\n", "build", r"in line 1 [\s\S]*No module named 'no_such_thing'"),
        ("def build_net(num_classes):\n    pass\n", "build_ned", "did you mean 'build_net'"),
        ("def build(num_classes):\n    return [num_classes]\n", "build", "which returned list"),
        ("def build(classes):\n    pass\n", "build", r"with num_classes=, where the function is build\(classes\)"),
        ("def build(num_classes, depth=2):\n    pass\n", "build", r"with dept=, [\s\S]*did you mean 'depth'"),
        (
            "from torch import nn\ndef build(num_classes, in_chans):\n"
            "    stem = nn.Conv2d(in_chans, 4, 8)\n"
            "    return nn.Sequential(stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))\n",
            "build",
            r"output is \(2, 5\)[\s\S]*logits of 3 classes",
        ),
    ],
)
def test_what_can_be_wrong_with_a_file(code, function, message, tmp_path):
    (tmp_path / "net.py").write_text(code)
    arguments = {"dept": 3} if "depth" in code else {}
    with pytest.raises(InputError, match=message):
        build(f"file:{tmp_path}/net.py:{function}", num_classes=3, image_size=16, allow_code=True, **arguments)


def test_names_that_are_no_file_and_function(tmp_path):
    with pytest.raises(InputError, match=r"file:PATH\.py:FUNCTION"):
        build("file:net.py", num_classes=3, allow_code=True)
    with pytest.raises(InputError, match="does not exist"):
        build(f"file:{tmp_path}/net.py:build", num_classes=3, allow_code=True)
    (tmp_path / "net.py").write_text("")
    with pytest.raises(InputError, match="a Python file publishes none"):
        build(f"file:{tmp_path}/net.py:build", num_classes=3, init="pretrained", allow_code=True)


SMALL = """
from torch import nn
from neighbour import WIDTH

class Net(nn.Sequential):
    pass

def build(num_classes):
    return Net(nn.Conv2d(3, WIDTH, 8, stride=8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, num_classes))
"""


def small(folder, width):
    folder.mkdir()
    (folder / "net.py").write_text(SMALL)
    (folder / "neighbour.py").write_text(f"WIDTH = {width}\n")
    return build(f"file:{folder}/net.py:build", num_classes=3, image_size=16, allow_code=True).net


def test_files_of_the_same_name_have_their_own_neighbours_and_modules(tmp_path):
    nets = [small(tmp_path / name, width) for name, width in (("a", 4), ("b", 6))]
    assert [net[0].out_channels for net in nets] == [4, 6]
    assert type(nets[0]) is not type(nets[1])
    assert [type(pickle.loads(pickle.dumps(net))) for net in nets] == [type(net) for net in nets]
    assert "neighbour" not in sys.modules


def test_a_module_of_the_caller_that_is_called_as_a_neighbour_is_put_back(tmp_path, monkeypatch):
    callers = type(sys)("neighbour")
    monkeypatch.setitem(sys.modules, "neighbour", callers)
    assert small(tmp_path / "a", 4)[0].out_channels == 4
    assert sys.modules["neighbour"] is callers


def test_a_file_that_fails_leaves_no_module_and_no_path_behind(file):
    modules, path = set(sys.modules), list(sys.path)
    file.write_text("import neighbour\nraise ValueError(neighbour.WIDTH)\n")
    with pytest.raises(InputError, match=r"in line 2 [\s\S]*ValueError: 8"):
        build(f"file:{file}:build", num_classes=3, allow_code=True)
    assert set(sys.modules) == modules
    assert sys.path == path


def test_a_neighbour_named_as_an_installed_package_does_not_replace_it(file):
    (file.parent / "torch.py").write_text("raise AssertionError\n")
    assert build(f"file:{file}:build", num_classes=3, allow_code=True).net.stem.out_channels == 8
    assert sys.modules["torch"] is torch


def test_the_line_of_an_error_is_told_for_a_relative_path_too(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text("def build(num_classes):\n    return 1 / 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"net\.py, which fails in line 2 \(return 1 / 0\)"):
        build("file:net.py:build", num_classes=3, allow_code=True)


def test_a_neighbour_s_syntax_error_is_not_put_into_the_file_s_lines(file):
    (file.parent / "neighbour.py").write_text("\n\n\n\n\n\nWIDTH = (\n")
    with pytest.raises(InputError, match=r"in line 3 \(from neighbour import WIDTH\): SyntaxError"):
        build(f"file:{file}:build", num_classes=3, allow_code=True)


@pytest.mark.parametrize("code", ["import sys\nsys.exit(7)\n", "def build(num_classes):\n    raise SystemExit(7)\n"])
def test_a_file_that_would_end_the_program_is_refused(code, tmp_path):
    (tmp_path / "net.py").write_text(code)
    with pytest.raises(InputError, match=r"in line 2 [\s\S]*SystemExit: 7"):
        build(f"file:{tmp_path}/net.py:build", num_classes=3, allow_code=True)


def test_a_staged_model_is_taken_for_its_network_and_no_other_class_of_that_name(file):
    more = (
        NET
        + """
from crossdistill import build as staged

def stages(num_classes):
    return staged(build(num_classes), num_classes=num_classes)

class StagedModel(Net):
    net = 1

def other(num_classes):
    return StagedModel(num_classes, 8)
"""
    )
    file.write_text(more)
    for function, kind in (("stages", "Net"), ("other", "StagedModel")):
        model = build(f"file:{file}:{function}", num_classes=3, image_size=64, allow_code=True)
        assert type(model.net).__name__ == kind

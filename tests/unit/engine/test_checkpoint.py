"""State survives the disk bit for bit, and what is broken is noticed."""

import errno
import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crossdistill.engine import checkpoint
from crossdistill.engine.checkpoint import BrokenCheckpoint, check_same, latest, load, write
from crossdistill.engine.state import join, split
from crossdistill.errors import InputError

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
KEYS = st.text(max_size=5) | st.integers() | st.sampled_from(["$tensor", "$items", "$float"])
TREES = st.recursive(
    PLAIN,
    lambda child: st.lists(child, max_size=3) | st.tuples(child, child) | st.dictionaries(KEYS, child, max_size=3),
    max_leaves=12,
)


def save(folder, step, state=None, **changes):
    keywords = {"epoch": 0, "fingerprint": {"lr": 1}, "environment": {"threads": 1}, **changes}
    return write(folder, state or {"student": {"weight": torch.full((3,), float(step))}}, step=step, **keywords)


@given(TREES)
def test_plain_state_passes_through_json_unchanged(tree):
    skeleton, tensors = split(tree)
    back = join(json.loads(json.dumps(skeleton, allow_nan=False)), tensors)
    assert back == tree
    assert repr(back) == repr(tree)  # also tuples, int keys, and 1 against True
    assert not tensors


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(2, 3),
        torch.tensor(7),
        torch.tensor([True, False]),
        torch.randn(4).to(torch.bfloat16),
        torch.randn(5, dtype=torch.float64),
        torch.zeros(0, 4),
        torch.randn(6, 4).t(),
        torch.tensor([float("nan"), float("inf"), -0.0]),
        torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    ],
    ids=lambda tensor: f"{tensor.dtype}-{tuple(tensor.shape)}-{tensor.stride()}",
)
def test_tensors_come_back_with_the_same_bits(tmp_path, tensor):
    back = load(save(tmp_path, 1, {"part": {"a": [tensor, {0: tensor}]}})).state["part"]["a"]
    for found in (back[0], back[1][0]):
        assert found.dtype == tensor.dtype
        assert found.shape == tensor.shape
        assert found.flatten().contiguous().view(torch.uint8).equal(tensor.flatten().contiguous().view(torch.uint8))
    assert back[0].is_contiguous(memory_format=torch.channels_last) == (tensor.ndim == 4)


def test_an_optimizers_state_comes_back(tmp_path):
    parameter = torch.nn.Parameter(torch.randn(3))
    optimizer = torch.optim.AdamW([parameter], betas=(0.8, 0.9))
    parameter.sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    back = load(save(tmp_path, 1, {"optimizer": state})).state["optimizer"]
    assert back["param_groups"] == state["param_groups"]
    assert isinstance(back["param_groups"][0]["betas"], tuple)
    assert list(back["state"]) == [0]
    assert all(torch.equal(back["state"][0][key], state["state"][0][key]) for key in state["state"][0])


def test_state_that_is_neither_tensor_nor_plain_is_a_programming_error():
    with pytest.raises(TypeError, match=r"state at 'a\.1\.b' is set"):
        split({"a": [0, {"b": {1, 2}}]})


def test_the_newest_two_and_the_asked_for_stay(tmp_path):
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step, keep_steps=[2])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000004", "step-00000005"]
    assert latest(tmp_path).manifest["step"] == 5


def test_a_second_checkpoint_of_a_step_counts_as_newer(tmp_path):
    save(tmp_path, 7, {"record": {"evaluated": False}})
    path = save(tmp_path, 7, {"record": {"evaluated": True}})
    assert path.name == "step-00000007.1"
    assert latest(tmp_path).state["record"] == {"evaluated": True}
    assert checkpoint.at_step(tmp_path, 7) == path


def test_nothing_to_resume(tmp_path):
    assert latest(tmp_path) is None
    assert latest(tmp_path / "missing") is None
    (tmp_path / "step-00000009.tmp-123").mkdir()
    assert latest(tmp_path) is None


def _flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["student.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("harm", [_flip_a_byte, lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_harm_to_any_file_is_noticed_and_the_one_before_is_taken(tmp_path, name, harm):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    harm(newest / name)
    with pytest.raises(BrokenCheckpoint):
        load(newest)
    with pytest.warns(UserWarning, match="skipping checkpoint .*step-00000002"):
        assert latest(tmp_path).state["student"]["weight"].tolist() == [1, 1, 1]


def test_when_all_are_broken_the_run_does_not_silently_start_anew(tmp_path):
    (save(tmp_path, 1) / "state.json").unlink()
    with (
        pytest.warns(UserWarning, match="skipping"),
        pytest.raises(InputError, match="none of 1 checkpoints is whole"),
    ):
        latest(tmp_path)


def test_a_newer_schema_is_refused_by_name(tmp_path):
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "schema": 99}))
    with pytest.raises(InputError, match="of schema 99"):
        latest(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO])
def test_a_refused_write_leaves_what_was_there(tmp_path, monkeypatch, number):
    save(tmp_path, 1)

    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(InputError) as error:
        save(tmp_path, 2)
    assert os.strerror(number) in error.value.given
    assert str(tmp_path) in error.value.given
    assert "bytes needed" in error.value.given
    assert "resume" in error.value.action
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert latest(tmp_path).manifest["step"] == 1


def test_a_file_in_the_way_of_the_folder_is_bad_input(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(InputError, match="could not be written"):
        save(tmp_path / "checkpoints", 1)


def test_fingerprints_are_compared_as_json_and_by_key(tmp_path):
    recorded = {"train": {"lr": 0.1, "precision": "fp32"}, "sizes": [1, 2], "device": "cpu", "gone": None}
    same = {"train": {"lr": 0.1, "precision": "bf16"}, "sizes": (1, 2), "device": "cuda", "gone": None}
    check_same(tmp_path, recorded, same)
    with pytest.raises(InputError) as error:
        check_same(tmp_path, recorded, {**same, "train": {"lr": 0.2}, "sizes": [1, 3], "new": "x"})
    assert error.value.given.endswith(
        "with other settings (new: was 'unset', now 'x'; sizes.1: was 2, now 3; train.lr: was 0.1, now 0.2)"
    )

"""A client's folder: what was kept comes back, damage is told, and a repeated round finds its predecessor."""

import pytest
import torch

from crossdistill.errors import InputError
from crossdistill.federated.memory import Memory, Past


def _past(round_, value=0.0):
    student = {"weight": torch.full((2, 3), value), "count": torch.tensor(7)}
    facts = {"figures": {"own_accuracy": 0.5}, "notes": ["a"], "task": "abc"}
    return Past(round_, student, {"bridge": torch.ones(2)}, **facts)


def test_what_was_kept_comes_back(tmp_path):
    memory = Memory(tmp_path / "client")
    assert memory.before(3) is None
    memory.keep(_past(1, 0.25))
    found = Memory(tmp_path / "client").before(1)
    assert found.round == 1
    assert torch.equal(found.student["weight"], torch.full((2, 3), 0.25))
    assert found.student["count"] == 7
    assert torch.equal(found.method["bridge"], torch.ones(2))
    assert (found.figures, found.notes, found.task) == ({"own_accuracy": 0.5}, ["a"], "abc")


def test_the_newest_round_up_to_the_asked_one_counts_and_two_are_kept(tmp_path):
    memory = Memory(tmp_path)
    for round_ in (1, 2, 3):
        memory.keep(_past(round_, float(round_)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-00002.safetensors", "round-00003.safetensors"]
    assert memory.before(9).round == 3
    assert memory.before(2).round == 2
    assert memory.before(1) is None


def test_a_repeated_round_forgets_the_later_ones(tmp_path):
    memory = Memory(tmp_path)
    memory.keep(_past(4))
    memory.keep(_past(5))
    memory.keep(_past(4, 9.0))
    assert memory.before(7).round == 4


def test_shared_tensors_are_kept_as_two(tmp_path):
    one = torch.arange(4.0)
    Memory(tmp_path).keep(Past(1, {"a": one, "b": one[:2]}, {}))
    assert torch.equal(Memory(tmp_path).before(1).student["b"], torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x00" * 200])
def test_a_damaged_file_is_told(tmp_path, content):
    memory = Memory(tmp_path)
    memory.keep(_past(1))
    (tmp_path / "round-00001.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="client state"):
        memory.before(1)


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        Memory(tmp_path / "file" / "client").keep(_past(1))

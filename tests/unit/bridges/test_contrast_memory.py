"""The memory of embeddings: first in, first out, and who is whose negative."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdistill.bridges.contrast_memory import ContrastMemory
from oracles.embedding_losses import Queue


def rows_of(numbers, width=3):
    """One row a number, told apart by its first value; its label is the number modulo 5, its sample the number."""
    numbers = torch.tensor(numbers, dtype=torch.int64)
    student = numbers[:, None].float().expand(-1, width).contiguous()
    return {"student": student, "teacher": -student, "labels": numbers % 5, "sample_ids": numbers}


def contents(memory):
    entries = zip(memory.student[:, 0], memory.teacher[:, 0], memory.labels, memory.sample_ids, strict=True)
    return [tuple(value.item() for value in entry) for entry in entries]


@settings(max_examples=30, deadline=None)
@given(num_entries=st.integers(1, 7), sizes=st.lists(st.integers(0, 16), min_size=1, max_size=6))
def test_is_a_queue_whatever_the_sizes_of_the_batches(num_entries, sizes):
    """Also of batches larger than the memory, and across its end."""
    memory = ContrastMemory(num_entries, 3)
    queue = Queue(contents(memory))
    for start, size in enumerate(sizes):
        numbers = [100 * start + i for i in range(size)]
        memory.write(**rows_of(numbers))
        queue.write([(float(n), -float(n), n % 5, n) for n in numbers])
        assert contents(memory) == queue.rows
    assert memory.num_written.item() == sum(sizes)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_nothing_is_written_where_a_row_is_not_finite(side):
    memory = ContrastMemory(4, 3)
    memory.write(**rows_of([1, 2]))
    before = {name: tensor.clone() for name, tensor in memory.state_dict().items()}
    broken = rows_of([3, 4])
    broken[side][0, 1] = torch.inf
    memory.write(**broken)
    for name, tensor in memory.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    memory.write(**rows_of([5]))
    assert memory.sample_ids.tolist() == [1, 2, 5, -1]


def test_negatives_are_of_another_class_and_another_sample():
    memory = ContrastMemory(5, 3)
    new = rows_of([10, 11, 12, 13])
    new["labels"] = torch.tensor([0, 1, -1, 0])
    memory.write(**new)  # nobody has written the fifth entry
    allowed = memory.negatives_of(torch.tensor([0, 1, -1, 2]), torch.tensor([10, 13, 12, 99]))
    assert allowed.tolist() == [
        [False, True, True, False, False],  # class 0: entries 0 and 3 are of it
        [True, False, True, False, False],  # class 1, and entry 3 is the sample itself under another label
        [True, True, False, True, False],  # unlabelled: only itself is left out
        [True, True, True, True, False],
    ]


def test_is_state():
    first, second = ContrastMemory(6, 3), ContrastMemory(6, 3)
    first.write(**rows_of([1, 2, 3, 4]))
    second.load_state_dict(first.state_dict())
    for memory in (first, second):
        memory.write(**rows_of([5, 6, 7]))
    assert contents(first) == contents(second)
    assert first.sample_ids.tolist() == [7, 2, 3, 4, 5, 6]
    assert set(first.state_dict()) == {"student", "teacher", "labels", "sample_ids", "num_written"}
    assert not list(first.parameters())

"""Nearest neighbours against plain loops, and what they do not depend on."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crossdistill.errors import InputError
from crossdistill.selfsup import knn as room
from crossdistill.selfsup.features import Features
from crossdistill.selfsup.knn import accuracy, knn_accuracy, weighted_knn
from oracles import knn as oracle


def random(seed, num_bank=12, num_queries=5, width=4, num_classes=3):
    generator = torch.Generator().manual_seed(seed)
    bank = torch.randn(num_bank, width, generator=generator, dtype=torch.float64)
    queries = torch.randn(num_queries, width, generator=generator, dtype=torch.float64)
    return bank, torch.randint(num_classes, (num_bank,), generator=generator), queries


@pytest.mark.parametrize("neighbours", [1, 5, 12])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_votes_equal_plain_loops(neighbours, temperature):
    bank, targets, queries = random(0)
    ours = weighted_knn(bank, targets, queries, num_classes=3, neighbours=neighbours, temperature=temperature)
    expected = torch.tensor(
        oracle.votes(bank.tolist(), targets.tolist(), queries.tolist(), 3, neighbours, temperature)
    ).double()
    # Votes are given relative to the nearest neighbour's: only their ratios count.
    torch.testing.assert_close(ours / ours.sum(1, keepdim=True), expected / expected.sum(1, keepdim=True))


@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_scale_of_embeddings_and_order_of_the_bank_do_not_matter(seed, scale):
    bank, targets, queries = random(seed)
    votes = weighted_knn(bank, targets, queries, num_classes=3, neighbours=4)
    order = torch.randperm(len(bank), generator=torch.Generator().manual_seed(seed))
    other = weighted_knn(scale * bank[order], targets[order], queries / scale, num_classes=3, neighbours=4)
    torch.testing.assert_close(other, votes)


def test_pieces_give_what_the_whole_gives(monkeypatch):
    bank, targets, queries = random(3, num_queries=7)
    whole = weighted_knn(bank, targets, queries, num_classes=3, neighbours=4)
    monkeypatch.setattr(room, "_CHUNK_VALUES", 2 * len(bank))
    torch.testing.assert_close(weighted_knn(bank, targets, queries, num_classes=3, neighbours=4), whole)


def test_a_low_temperature_lets_the_nearest_decide():
    bank, targets = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.9, 0.12]]), torch.tensor([0, 1, 1])
    query = torch.tensor([[1.0, 0.0]])
    assert weighted_knn(bank, targets, query, num_classes=2, neighbours=3, temperature=1e-4).argmax() == 0
    assert weighted_knn(bank, targets, query, num_classes=2, neighbours=3, temperature=10.0).argmax() == 1


def test_unlabelled_images_neither_vote_nor_ask():
    bank, targets, queries = random(1)
    features = Features(bank, targets, torch.arange(len(bank)))
    more = Features(torch.cat([bank, queries]), torch.cat([targets, torch.full((5,), -1)]), torch.arange(17))
    asked = Features(queries, torch.tensor([0, 1, 2, 0, 1]), torch.arange(5))
    assert knn_accuracy(features, asked, num_classes=3, neighbours=4) == knn_accuracy(
        more, asked, num_classes=3, neighbours=4
    )
    with pytest.raises(InputError, match="5 images without labels, where labels are asked for"):
        knn_accuracy(features, Features(queries, torch.full((5,), -1), torch.arange(5)), num_classes=3)


def test_accuracy_counts_the_first_and_the_first_five():
    scores = torch.eye(7)[[0, 1, 2]] + torch.linspace(0, 0.5, 7)
    assert accuracy(scores, torch.tensor([0, 6, 1])) == {"top1": 1 / 3, "top5": 2 / 3, "num_samples": 3}
    assert "top5" not in accuracy(scores[:, :3], torch.tensor([0, 0, 0]))


@pytest.mark.parametrize("neighbours", [0, 13])
def test_more_neighbours_than_images_are_refused(neighbours):
    bank, targets, queries = random(0)
    with pytest.raises(InputError, match=f"{neighbours} neighbours of 12 images"):
        weighted_knn(bank, targets, queries, num_classes=3, neighbours=neighbours)
    with pytest.raises(InputError, match="temperature above 0"):
        weighted_knn(bank, targets, queries, num_classes=3, neighbours=2, temperature=0.0)

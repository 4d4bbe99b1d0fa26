"""The queue of words: order of operations, ring, mean distance, draws, and what is too small."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crossdistill.bridges import vocabulary as room
from crossdistill.bridges.draws import uniform_by_id
from crossdistill.bridges.vocabulary import Vocabulary, candidates, fitting
from crossdistill.errors import InputError
from crossdistill.losses.bow import CHUNK_BYTES
from oracles import obow as oracle


def made(num_words=8, channels=3, **options):
    torch.manual_seed(1)
    return Vocabulary(num_words, channels, **{"inverse_delta": 10.0, **options}).double()


def step(vocabulary, features, draws=None, num_micro_batches=1):
    vocabulary.begin_step(num_micro_batches)
    return vocabulary.bags(features, torch.rand(len(features)) if draws is None else draws)


def test_worked_example_of_the_specification():
    vocabulary = made(3, 2, inverse_delta=1.0, initial_distance=0.5)
    vocabulary.words.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1]]))
    features = torch.zeros(1, 2, 5, 5, dtype=torch.float64)
    features[0, :, 0], features[0, :, :, 0] = 9, 9
    features[0, 0, 1:4, 1:4] = torch.tensor([[1.0, 0, 1], [0, 2, 0], [1, 0, 1]])
    features[0, 1, 1:4, 1:4] = torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 2]])
    bags = step(vocabulary, features)
    assert bags[0].tolist() == pytest.approx((0.335244, 0.330124, 0.334632), abs=5e-7)
    assert vocabulary.mean_distance.item() == pytest.approx(0.4972222, abs=5e-8)
    assert vocabulary.words.tolist() == [pytest.approx([2 / 3, 2 / 3]), [0, 1], [1, 1]]
    assert vocabulary.num_written == 1


def test_a_step_in_plain_loops():
    """Distances and bags by the old words, the mean distance already the new one, words written in order."""
    vocabulary = made(num_words=7, initial_distance=0.5)
    words, pointer, mean = vocabulary.words.numpy().copy(), 0, 0.5
    for number in range(4):
        features = torch.randn(3, 3, 6, 5, dtype=torch.float64)
        draws = torch.tensor([0.0, 0.5, 0.999])
        bags = step(vocabulary, features, draws)
        maps = features.numpy()
        mean = 0.99 * mean + 0.01 * oracle.nearest_distances(maps, words, 1).mean()
        expected = oracle.bags(maps, words, 10.0 / mean, "max", 1)
        np.testing.assert_allclose(bags.numpy(), expected, rtol=1e-9)
        places = [oracle.averages(one, 1) for one in maps]
        new = [place[int(draw * len(place))] for place, draw in zip(places, draws.tolist(), strict=True)]
        words, pointer = oracle.ring_write(words, pointer, new)
        np.testing.assert_allclose(vocabulary.words.numpy(), words, rtol=1e-9, err_msg=f"step {number}")
        assert vocabulary.mean_distance.item() == pytest.approx(mean, rel=1e-12)
    assert vocabulary.num_written == 12
    assert pointer == 12 % 7


@given(st.integers(1, 9), st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_any_batch_meets_any_number_of_words(num_words, sizes):
    """Row by row, also where a batch has more words than the vocabulary: its last ones stay."""
    vocabulary = made(num_words, 2, queue="global_average", border=0)
    words, pointer = vocabulary.words.numpy().copy(), 0
    for number, size in enumerate(sizes):
        features = torch.randn(size, 2, 2, 2, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        step(vocabulary, features)
        words, pointer = oracle.ring_write(words, pointer, features.mean(dim=(2, 3)).numpy())
    np.testing.assert_allclose(vocabulary.words.numpy(), words, rtol=1e-12)
    assert vocabulary.num_written == sum(sizes)
    assert pointer == sum(sizes) % num_words


def test_a_fixed_number_of_words_a_step():
    vocabulary = made(words_per_step=2, queue="global_average")
    features = torch.randn(5, 3, 5, 5, dtype=torch.float64)
    step(vocabulary, features)
    assert vocabulary.num_written == 2
    torch.testing.assert_close(vocabulary.words[:2], features[:2, :, 1:-1, 1:-1].mean(dim=(2, 3)))


def test_a_fixed_number_of_words_a_step_is_that_of_all_its_micro_batches():
    features, draws = torch.randn(6, 3, 5, 5, dtype=torch.float64), torch.rand(6)
    whole, parts = made(words_per_step=3), made(words_per_step=3)
    step(whole, features, draws)
    parts.begin_step(3)
    for rows in (slice(0, 2), slice(2, 4), slice(4, 6)):
        parts.bags(features[rows], draws[rows])
    assert parts.num_written == whole.num_written == 3
    torch.testing.assert_close(parts.words, whole.words)


def test_the_mean_distance_warms_up_by_steps_whatever_the_micro_batches():
    """Distances that jump: after as many steps the averages agree, up to where within a step they move."""
    found = []
    for num_parts in (1, 4):
        vocabulary = made(num_words=4, queue="global_average")
        vocabulary.words_per_step = vocabulary._left = 0
        for number in range(12):
            features = (1 if number < 6 else 3) * torch.ones(4, 3, 5, 5, dtype=torch.float64)
            vocabulary.begin_step(num_parts)
            for part in features.chunk(num_parts):
                vocabulary.bags(part, torch.zeros(len(part)))
        found.append(vocabulary.mean_distance.item())
    assert found[1] == pytest.approx(found[0], rel=0.01)


def test_micro_batches_of_a_step_see_the_same_words_and_count_as_one_step():
    features = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    whole, parts = made(initial_distance=0.5), made(initial_distance=0.5)
    draws = torch.tensor([0.1, 0.4, 0.6, 0.9])
    step(whole, features, draws)
    parts.begin_step(2)
    before = parts.words.clone()
    for half in (slice(0, 2), slice(2, 4)):
        parts.bags(features[half], draws[half])
        assert torch.equal(parts.snapshot, before)
    torch.testing.assert_close(parts.words, whole.words)
    # Both halves move the mean distance by the root of the momentum: equal means would give the same as one step.
    assert parts.mean_distance.item() == pytest.approx(whole.mean_distance.item(), rel=2e-2)


def test_the_mean_distance_starts_at_the_first_batch():
    vocabulary = made()
    features = 100 * torch.randn(4, 3, 5, 5, dtype=torch.float64)
    expected = oracle.nearest_distances(features.numpy(), vocabulary.words.numpy(), 1).mean()
    step(vocabulary, features)
    assert vocabulary.mean_distance.item() == pytest.approx(expected)
    legacy = made(initial_distance=0.5)
    step(legacy, features)
    assert legacy.mean_distance.item() == pytest.approx(0.99 * 0.5 + 0.01 * expected)


def test_nothing_moves_outside_training():
    vocabulary = made().eval()
    before = {name: buffer.clone() for name, buffer in vocabulary.named_buffers()}
    step(vocabulary, torch.randn(2, 3, 5, 5, dtype=torch.float64))
    assert all(torch.equal(buffer, before[name]) for name, buffer in vocabulary.named_buffers())


def test_distances_that_do_not_fit_are_computed_twice_with_the_same_result(monkeypatch):
    features, draws = torch.randn(5, 3, 6, 6, dtype=torch.float64), torch.rand(5)
    whole, parts = made(num_words=16), made(num_words=16)
    expected = step(whole, features, draws)
    monkeypatch.setattr(room, "KEPT_BYTES", 0)
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 2 * 16 * 16 * 8)
    torch.testing.assert_close(step(parts, features, draws), expected)
    for name, buffer in whole.named_buffers():
        torch.testing.assert_close(dict(parts.named_buffers())[name], buffer)


def test_words_that_are_not_finite_are_not_written():
    vocabulary = made()
    before = vocabulary.words.clone()
    features = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    features[0, 0, 2, 2] = torch.inf
    step(vocabulary, features)
    assert torch.equal(vocabulary.words, before)
    assert vocabulary.num_written == 0
    assert vocabulary.mean_distance.isfinite()


def test_cosine_words_have_length_one_and_bags_do_not_depend_on_scale():
    features, draws = torch.randn(6, 3, 5, 5, dtype=torch.float64), torch.rand(6)
    one, other = made(cosine=True), made(cosine=True)
    torch.testing.assert_close(step(one, features, draws), step(other, 1000 * features, draws))
    torch.testing.assert_close(one.words.norm(dim=1), torch.ones(8).double())


def test_candidates_of_each_kind():
    features = torch.arange(2 * 5 * 6, dtype=torch.float64).reshape(1, 2, 5, 6)
    inside = features[0, :, 1:-1, 1:-1]
    at_last = torch.tensor([0.9999])
    torch.testing.assert_close(candidates(features, at_last, border=1, queue="location")[0], inside[:, -1, -1])
    torch.testing.assert_close(candidates(features, at_last, border=1, queue="global_average")[0], inside.mean((1, 2)))
    torch.testing.assert_close(
        candidates(features, at_last, border=1, queue="local_average")[0], inside[:, :, -3:].mean((1, 2))
    )


def test_the_share_of_used_words_is_of_those_that_leave_the_queue():
    """Two words near to features, two that nothing is like; a batch of four replaces them all in every step."""
    vocabulary = made(num_words=4, queue="global_average", inverse_delta=None)
    assert vocabulary.figures()["words_used"] == 1
    shown = torch.ones(4, 3, 5, 5, dtype=torch.float64)
    step(vocabulary, shown)  # the first words are nobody's fault
    assert vocabulary.figures()["words_used"] == 1
    assert vocabulary.is_full
    vocabulary.words.copy_(torch.tensor([[1.0] * 3, [2.0] * 3, [900.0] * 3, [-900.0] * 3]))
    step(vocabulary, torch.cat([shown[:2], 2 * shown[:2]]))
    assert vocabulary.figures()["words_used"].item() == pytest.approx(1 - 0.1 * 0.5)


def test_draws_are_a_function_of_sample_and_seed():
    ids = torch.arange(5000)
    draws = uniform_by_id(ids, torch.tensor(7))
    assert torch.equal(uniform_by_id(ids.flip(0), torch.tensor(7)).flip(0), draws)
    assert not torch.equal(uniform_by_id(ids, torch.tensor(8)), draws)
    assert draws.min() >= 0
    assert draws.max() < 1
    # Ten bins of 500 expected: chi squared with nine degrees of freedom exceeds 27.9 once in a thousand.
    counts = torch.histc(draws, 10, 0, 1)
    assert ((counts - 500).square() / 500).sum() < 27.9
    neighbours = torch.corrcoef(torch.stack([draws[:-1], draws[1:]]))[0, 1]
    assert neighbours.abs() < 4 / 5000**0.5


@pytest.mark.parametrize(
    ("grid", "border", "queue", "least"),
    [
        ((4, 7), 1, "local_average", 5),
        ((2, 2), 1, "location", 3),
        ((2, 2), 0, "local_average", 3),
        ((2, 9), None, "local_average", 3),
    ],
)
def test_a_level_that_gives_no_word_is_refused(grid, border, queue, least):
    words = rf"level 4 of net, whose map has {grid[0]}x{grid[1]} locations"
    with pytest.raises(InputError, match=words) as refused:
        fitting(grid, "level 4 of net", border=border, queue=queue)
    assert f"at least {least}x{least} locations" in str(refused.value)
    assert "method.levels" in str(refused.value)


@pytest.mark.parametrize("side", range(1, 9))
def test_what_is_left_open_always_fits_and_is_as_published_from_five_locations_on(side):
    border, queue = fitting((side, side + 1), "level")
    assert (border, queue) == (
        (1, "local_average") if side >= 5 else (0, "local_average") if side >= 3 else (0, "location")
    )
    vocabulary = made(4, 2, border=border, queue=queue)
    assert step(vocabulary, torch.randn(2, 2, side, side + 1, dtype=torch.float64)).shape == (2, 4)
    assert vocabulary.num_written == 2

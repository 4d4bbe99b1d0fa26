"""Fusion by blocks against the same in float64, within the bound that it states, in the memory that it is given."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import issparse

from crossdistill.errors import InputError
from crossdistill.federated import blocks
from crossdistill.federated.blocks import block_distributions, fuse_blocks, read_teacher, write_teachers
from crossdistill.federated.fusion import cut_neighbours, divergences, fuse, fusion_weights, smooth
from oracles import knfu as oracle


def answers(seed, num_clients=6, num_samples=23, num_classes=4, spread=0.5):
    """Knowledge (N, M, C) in half precision, of clients that prefer some classes each."""
    generator = np.random.default_rng(seed)
    priors = generator.dirichlet(np.full(num_classes, spread), (num_clients, 1)) + 1e-4
    rows = priors * generator.dirichlet(np.full(num_classes, spread), (num_clients, num_samples)) + 1e-9
    return (rows / rows.sum(axis=2, keepdims=True)).astype(np.float16)


def in_double(knowledge):
    """As on receipt: rows add up to 1."""
    exact = knowledge.astype(np.float64)
    return exact / exact.sum(axis=2, keepdims=True)


def exact_weights(knowledge, beta, threshold=0.0):
    distributions = in_double(knowledge).mean(axis=1)
    return cut_neighbours(fusion_weights(divergences(smooth(distributions)), beta), threshold)


def assert_within_bound(found, knowledge, weights):
    exact = fuse(in_double(knowledge), weights)
    num_clients, _, num_classes = knowledge.shape
    relative = 2.0**-11 + 1.01 * (num_clients + num_classes + 2) * 2.0**-24
    assert found.dtype == np.float16
    assert found.shape == exact.shape
    off = np.abs(found.astype(np.float64) - exact)
    assert (off <= relative * exact + 2.0**-24).all(), (off - relative * exact).max()


def saved(knowledge, folder):
    """One file a client."""
    paths = [folder / f"{client}.npy" for client in range(len(knowledge))]
    for path, one in zip(paths, knowledge, strict=True):
        np.save(path, one)
    return paths


@pytest.mark.parametrize("block_bytes", [1, 1000, 4 * 12 * 4 * 5, 2**20])
@pytest.mark.parametrize(("beta", "threshold"), [(0.0, 0.0), (10.0, 0.0), (10.0, 0.5), (1000.0, 0.0)])
def test_teachers_are_those_of_the_plain_fusion_within_the_stated_bound(tmp_path, block_bytes, beta, threshold):
    knowledge = answers(0)
    options = {"beta": beta, "threshold": threshold, "block_bytes": block_bytes}
    weights = fuse_blocks(saved(knowledge, tmp_path), tmp_path / "fused.npy", **options)
    np.testing.assert_allclose(weights, exact_weights(knowledge, beta, threshold), rtol=1e-9, atol=1e-300)
    assert_within_bound(np.load(tmp_path / "fused.npy"), knowledge, weights)


@given(
    seed=st.integers(0, 10_000),
    num_clients=st.integers(1, 40),
    num_samples=st.integers(1, 30),
    num_classes=st.integers(2, 12),
    spread=st.sampled_from([0.02, 0.5, 5.0]),
    beta=st.floats(0, 100),
    block_bytes=st.integers(1, 20_000),
)
def test_the_bound_holds_for_any_clients(
    tmp_path_factory, seed, num_clients, num_samples, num_classes, spread, beta, block_bytes
):
    knowledge = answers(seed, num_clients, num_samples, num_classes, spread)
    out = tmp_path_factory.mktemp("fused") / "fused.npy"
    weights = fuse_blocks(knowledge, out, beta=beta, block_bytes=block_bytes)
    np.testing.assert_allclose(weights, exact_weights(knowledge, beta), rtol=1e-8, atol=1e-300)
    fused = np.load(out)
    assert_within_bound(fused, knowledge, weights)
    off = 2.0**-10 + num_classes * 2.0**-24
    np.testing.assert_allclose(fused.sum(axis=2, dtype=np.float64), np.ones(fused.shape[:2]), rtol=0, atol=off)


def test_weights_and_teachers_equal_plain_loops(tmp_path):
    knowledge = answers(3, num_clients=4, num_samples=5)
    lists = in_double(knowledge).tolist()
    expected = oracle.weights_of(lists, beta=10.0, threshold=0.5)
    weights = fuse_blocks(knowledge, tmp_path / "fused.npy", beta=10.0, threshold=0.5, block_bytes=100)
    np.testing.assert_allclose(weights, expected, rtol=1e-9)
    np.testing.assert_allclose(
        np.load(tmp_path / "fused.npy"), oracle.fuse(lists, expected), rtol=2.0**-10, atol=2.0**-24
    )


def test_the_size_of_a_block_changes_no_more_than_the_last_digit(tmp_path):
    knowledge = answers(1, num_clients=30, num_samples=101, num_classes=7)
    whole = fuse_blocks(knowledge, tmp_path / "whole.npy", beta=3.0)
    expected = np.load(tmp_path / "whole.npy")
    for rows in (1, 2, 33, 100):
        block_bytes = 4 * 60 * 7 * rows
        weights = fuse_blocks(knowledge, tmp_path / "pieces.npy", beta=3.0, block_bytes=block_bytes)
        np.testing.assert_allclose(weights, whole, rtol=1e-12)
        found = np.load(tmp_path / "pieces.npy")
        assert (np.abs(found.astype(np.float32) - expected) <= np.spacing(expected).astype(np.float32)).all()
        assert (found == expected).mean() > 0.98


def test_files_arrays_and_one_array_give_the_same(tmp_path):
    knowledge = answers(2)
    np.save(tmp_path / "all.npy", knowledge)
    given = {
        "files": saved(knowledge, tmp_path),
        "arrays": list(knowledge),
        "one": knowledge,
        "mapped": np.load(tmp_path / "all.npy", mmap_mode="r"),
    }
    found = {}
    for name, one in given.items():
        fuse_blocks(one, tmp_path / f"{name}-fused.npy", beta=10.0, block_bytes=500)
        found[name] = (tmp_path / f"{name}-fused.npy").read_bytes()
    assert len(set(found.values())) == 1


def test_a_teacher_is_one_piece_of_the_file_and_is_read_without_the_others(tmp_path):
    knowledge = answers(4, num_clients=50, num_samples=1000, num_classes=10)
    fuse_blocks(knowledge, tmp_path / "fused.npy", beta=10.0, block_bytes=100_000)
    teacher = read_teacher(tmp_path / "fused.npy", 7)
    content = (tmp_path / "fused.npy").read_bytes()
    piece = 1000 * 10 * 2
    begin = len(content) - 50 * piece
    assert content[begin + 7 * piece : begin + 8 * piece] == teacher.tobytes()
    tracemalloc.start()
    try:
        read_teacher(tmp_path / "fused.npy", 7)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * piece  # of fifty; opening a file takes as much as one
    teacher[:] = 0  # a copy: the file stays as it is
    assert (tmp_path / "fused.npy").read_bytes() == content


def peak_of(folder, num_samples, block_bytes):
    """Most that one fusion of forty clients holds, and what their knowledge takes."""
    knowledge = answers(0, num_clients=40, num_samples=num_samples, num_classes=10)
    paths = saved(knowledge, folder)
    tracemalloc.start()
    try:
        fuse_blocks(paths, folder / "fused.npy", beta=1.0, block_bytes=block_bytes)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return peak, knowledge.nbytes


def test_memory_is_that_of_a_block_however_many_samples_there_are(tmp_path):
    block_bytes = 2**20
    few, _ = peak_of(tmp_path, 1000, block_bytes)
    many, all_bytes = peak_of(tmp_path, 12_000, block_bytes)
    assert all_bytes > 9 * block_bytes
    # Beside the block: weights of 13 kB, some of them at once, and what Python and a mapped file take.
    assert max(few, many) < block_bytes + 2**18
    assert many < few + 2**17


def test_one_sample_of_all_clients_is_the_least_block():
    assert list(blocks._blocks(5, 100, 1)) == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    assert list(blocks._blocks(5, 100, 250)) == [(0, 2), (2, 4), (4, 5)]
    assert list(blocks._blocks(5, 100, 1000)) == [(0, 5)]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not tell which files are open")
def test_files_of_clients_do_not_stay_open(tmp_path, monkeypatch):
    seen, put = [], blocks._put

    def counting(*arguments):
        seen.append(len(os.listdir("/proc/self/fd")))
        put(*arguments)

    monkeypatch.setattr(blocks, "_put", counting)
    paths = saved(answers(0, num_clients=60), tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    fuse_blocks(paths, tmp_path / "fused.npy", beta=10.0, block_bytes=20_000)
    assert len(seen) > 1
    assert max(seen) <= before + 2


def test_few_teachers_make_a_sparse_product_within_the_same_bound(tmp_path):
    knowledge = answers(5, num_clients=60, num_samples=11, spread=0.1)
    assert issparse(blocks._factors(exact_weights(knowledge, 1e5)))
    assert not issparse(blocks._factors(exact_weights(knowledge, 0.1)))
    weights = fuse_blocks(knowledge, tmp_path / "fused.npy", beta=1e5, block_bytes=3000)
    assert_within_bound(np.load(tmp_path / "fused.npy"), knowledge, weights)


def test_weights_that_cannot_show_are_left_out():
    num_clients = 40
    weights = np.full((2, num_clients), 0.99 * blocks.LEFT_OUT / num_clients)
    weights[0, 0], weights[1, 1] = 1, 1.01 * blocks.LEFT_OUT / num_clients
    factors = blocks._factors(weights)
    assert issparse(factors)
    assert [(row, column) for row, column in zip(*factors.nonzero(), strict=True)] == [(0, 0), (1, 1)]


def test_half_precision_is_rounded_as_numpy_rounds_it():
    generator = np.random.default_rng(0)
    ties = (np.arange(2048) + 0.5) * 2.0**-24
    edges = np.float32([0, 2.0**-26, 2.0**-25, 2.0**-14, 0.5, 1, np.nextafter(2.0**-14, 0, dtype=np.float32)])
    spread = 2.0 ** generator.uniform(-40, 0, 50_000)
    values = np.concatenate([ties, np.nextafter(ties, 1), np.nextafter(ties, 0), edges, spread]).astype(np.float32)
    expected = values.astype(np.float16)
    assert (expected < 2.0**-14).mean() > 0.5
    np.testing.assert_array_equal(blocks._halves(values), expected)


@pytest.mark.parametrize("share", [0.02, 1.0])
def test_given_weights_of_some_receivers(tmp_path, share):
    knowledge = answers(6, num_clients=50)
    weights = np.random.default_rng(0).dirichlet(np.full(50, share / 10), 3)
    write_teachers(knowledge, weights, tmp_path / "fused.npy", block_bytes=5000)
    found = np.load(tmp_path / "fused.npy")
    assert found.shape == (3, 23, 4)
    assert_within_bound(found, knowledge, weights)


def test_distributions_are_taken_in_double_precision():
    row = np.array([0.1, 0.2, 0.7], dtype=np.float16)
    knowledge = np.tile(row, (1, 20_000, 1))
    expected = row.astype(np.float64) / row.astype(np.float64).sum()
    for block_bytes in (1000, 2**28):
        np.testing.assert_allclose(block_distributions(knowledge, block_bytes=block_bytes)[0], expected, rtol=1e-11)


def with_row(row):
    knowledge = answers(0)
    knowledge[4, 20] = row
    return list(knowledge)


@pytest.mark.parametrize("row", [np.nan, [np.inf, 0, 0, 0], [0, 0, 0, 0], [0.5, 0.25, 0.2, 0.0], [1, 0.1, 0, 0]])
def test_rows_that_do_not_add_up_are_refused_and_nothing_is_written(tmp_path, row):
    with pytest.raises(InputError, match="knowledge of client 4 with rows that do not add up to 1"):
        fuse_blocks(with_row(row), tmp_path / "fused.npy", beta=10.0, block_bytes=100)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("knowledge", "words"),
    [
        ([], "knowledge of no client"),
        ([*answers(0), answers(0)[0][:-1]], r"knowledge of client 6 is float16 of shape \(22, 4\)"),
        ([*answers(0), answers(0)[0][:, :3]], r"expected: float16 of shape \(23, 4\)"),
        ([answers(0)[0].astype(np.float32)], "knowledge of client 0 is float32"),
        ([answers(0)[0].ravel()], r"of shape \(92,\)"),
        ([answers(0)], r"of shape \(6, 23, 4\)"),
        ([answers(0)[0][:0]], r"of shape \(0, 4\)"),
    ],
)
def test_knowledge_of_another_kind_is_refused(tmp_path, knowledge, words):
    with pytest.raises(InputError, match=words):
        fuse_blocks(knowledge, tmp_path / "fused.npy", beta=10.0)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "broken.npy").write_bytes(b"nothing of numpy's")
    for name in ("missing.npy", "broken.npy"):
        with pytest.raises(InputError, match="knowledge of client 0"):
            block_distributions([tmp_path / name])


def test_weights_of_other_clients_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"weights of shape \(6, 5\)"):
        write_teachers(answers(0), np.ones((6, 5)) / 5, tmp_path / "fused.npy")


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot write below"):
        fuse_blocks(answers(0), tmp_path / "missing" / "fused.npy", beta=10.0)


def test_what_was_there_stays_until_all_is_written(tmp_path, monkeypatch):
    fuse_blocks(answers(0), tmp_path / "fused.npy", beta=10.0)
    before = (tmp_path / "fused.npy").read_bytes()
    put, calls = blocks._put, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        put(*arguments)

    monkeypatch.setattr(blocks, "_put", failing)
    with pytest.raises(InputError, match="No space left"):
        fuse_blocks(answers(1), tmp_path / "fused.npy", beta=10.0, block_bytes=1000)
    assert len(calls) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["fused.npy"]
    assert (tmp_path / "fused.npy").read_bytes() == before

"""Before a comparison begins, its store is checked; after it, report and results say what the store was."""

import json
import shlex

import pytest
import torch

from crossdistill import cli
from samples import stores
from samples.html_page import Page

DATA = "--data digits data.limit_train=96 allow_untrained_teacher=true --device cpu --batch-size 32"
PAIR = f"--student timm/mixer_tiny --image-size 16 {DATA}"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two epochs, three logits of ten, with embeddings."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("stores")
    return stores.write(root / "store", [stores.network("cnn")], top_k=3, embeddings=True)


@pytest.fixture(scope="module")
def bare(store):
    return stores.write(store.parent / "bare", [stores.network("cnn")])


@pytest.fixture
def run(store, bare, capsys):
    def run(line):
        capsys.readouterr()
        code = cli.run(shlex.split(line.format(store=store, bare=bare)))
        return code, capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--teacher {store} --epochs 2 data.augment.flip=0.5", "images.augment.flip: stored 0.0, now 0.5"),
        ("--teacher {store}", "100 epochs (the default of --epochs) with store"),
        ("--teacher {store} --epochs 3", "3 epochs with store"),
        ("--teacher {store} --epochs 2 --method fbt", "the live teacher"),
        ("--teacher {bare} --epochs 2 --method rkd", "--embeddings"),
        ("--teacher {bare} --epochs 2 --seeds 0,1 data.seed=0 --method rkd", "--embeddings"),
        ("--teacher timm/test_vit --epochs 2 --method fitnet method.stages=[9]", "stages"),
    ],
)
def test_a_comparison_is_refused_before_its_first_run(run, tmp_path, line, said):
    code, printed = run(f"distill {line} {PAIR} --baseline --out {tmp_path / 'run'}")
    assert code == cli.EXIT_BAD_INPUT, printed.err
    assert said in printed.err
    assert "run 1 of" not in printed.err
    assert list(tmp_path.iterdir()) == []


def test_results_and_page_say_what_the_store_was(run, store, tmp_path):
    more = "--epochs 3 data.cycle_epochs=2 --seeds 0,1 data.seed=0 train.eval_every=3"
    code, printed = run(f"distill --teacher {{store}} {PAIR} {more} --out {tmp_path / 'run'} --json")
    assert code == 0, printed.err
    facts = json.loads(printed.out)["store"]
    assert facts["path"] == str(store)
    assert (facts["top_k"], facts["embeddings"], facts["num_epochs"], facts["seed"]) == (3, True, 2, 0)
    text = " ".join(Page((tmp_path / "run" / "report.html").read_text()).text_of("p"))
    kept = "the 3 largest of 10 logits and the mass of the others, with embeddings; fp32; images of seed 0; 2 epochs"
    assert f"answers stored in {store} ({kept})" in text
    assert "the spread is that of first weights only" in text
    assert "Images of 2 epochs, shown again and again for 3." in text


def test_a_live_teacher_has_no_store(run, tmp_path):
    line = f"--teacher timm/test_vit teachers.0.image_size=32 {PAIR} --epochs 1 --out {tmp_path / 'run'} --json"
    code, printed = run(f"distill {line}")
    assert code == 0, printed.err
    assert json.loads(printed.out)["store"] is None


def test_speed_is_measured_over_the_epochs_that_are_stored_and_says_what_it_does(run):
    code, printed = run(f"bench speed --teacher {{store}} {PAIR} --steps 3 --warmup 1")
    assert code == 0, printed.err
    told = [line.partition(":")[0] for line in printed.err.splitlines()]
    assert told == [
        *("building networks and data", "warming up", "timing", "profiling", "in turn with plain training"),
    ]
    code, printed = run(f"bench speed --teacher {{store}} {PAIR} --dry-run --json")
    assert code == 0, printed.err


def test_a_missing_store_is_told_that_a_store_would_do(run, tmp_path):
    code, printed = run(f"distill --teacher {tmp_path / 'missing'} {PAIR} --out {tmp_path / 'run'}")
    assert code == cli.EXIT_BAD_INPUT
    assert "takes a store" in printed.err

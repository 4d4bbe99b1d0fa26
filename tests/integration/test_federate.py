"""``crossdistill federate``: from one command to a table, a report, and a run that survives being killed."""

import json
import re
import signal
import time

import pytest

from crossdistill import cli
from crossdistill.federated import federate
from samples import image_folder
from samples.launch import finish, start

QUICK = [
    *("--clients", "3", "--rounds", "2", "--models", "mlp,transformer", "--samples", "40"),
    *("train.epochs=null", "train.steps=4", "tune.epochs=null", "tune.steps=3", "transfer.limit=40"),
]


def command(out, *more, data="digits"):
    return ["federate", "--data", data, "--out", str(out), *QUICK, *map(str, more)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "federated"
    assert cli.run(command(out, "--strategy", "knfu,local,self,centralised", "--workers", 0, "--json")) == 0
    return out


def results_in(out):
    return json.loads((out / "results.json").read_text())


def figures(results):
    """All that is recorded of the rounds but how long they took."""
    rounds = json.loads(json.dumps([record["rounds"] for record in results["federation"]]))
    for one in (one for record in rounds for one in record):
        for client in one["clients"].values():
            client.pop("seconds", None)
    return rounds


def test_a_run_leaves_what_a_person_and_a_program_need(finished):
    results = results_in(finished)
    assert results["kind"] == "federate"
    by_strategy = {record["strategy"]: record for record in results["federation"]}
    assert list(by_strategy) == ["knfu", "local", "self", "centralised"]
    for record in by_strategy.values():
        assert len(record["clients"]) == 3
        assert all(sum(client["histogram"]) == 40 for client in record["clients"])
        assert 0 <= record["final"]["worst"] <= record["final"]["alma"] <= 1
        assert record["final"]["alma"] > 0
    assert [len(record["rounds"]) for record in by_strategy.values()] == [2, 2, 2, 1]
    assert by_strategy["local"]["final"]["offered"] == 0
    assert by_strategy["knfu"]["final"]["offered"] == 6
    assert {row["method"]: row["top1_mean"] for row in results["rows"]}["KnFu"] == by_strategy["knfu"]["final"]["alma"]
    assert "KnFu against Self" in results["headline"]
    page = (finished / "report.html").read_text()
    for words in ("3 clients", "KnFu", "Centralised", "ALMA"):
        assert words in page
    assert len((finished / "knfu/seed-0/metrics.jsonl").read_text().splitlines()) == 2


def test_a_finished_run_is_read_and_not_run_again(finished, capsys):
    before = (finished / "knfu/seed-0/server/state.json").stat().st_mtime_ns
    again = command(finished, "--strategy", "knfu,local,self,centralised", "--workers", 0, "--resume", "--json")
    assert cli.run(again) == 0
    assert figures(json.loads(capsys.readouterr().out)) == figures(results_in(finished))
    assert (finished / "knfu/seed-0/server/state.json").stat().st_mtime_ns == before


def test_flowers_simulation_gives_the_same_as_one_process(finished, tmp_path):
    done = finish(start(*command(tmp_path / "ray", "--strategy", "knfu", "--workers", 2)))
    assert done.returncode == 0, done.stderr
    simulated, direct = figures(results_in(tmp_path / "ray"))[0], figures(results_in(finished))[0]
    assert simulated == direct
    assert "round 2: ALMA" in done.stdout + done.stderr
    assert "deprecated" not in done.stdout + done.stderr


def test_a_killed_run_goes_on_to_the_same_end(finished, tmp_path):
    out = tmp_path / "killed"
    process = start(*command(out, "--strategy", "knfu", "--workers", 0))
    state, end = out / "server/state.json", time.monotonic() + 200
    while not state.exists() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    finish(process)
    assert not (out / "results.json").exists()
    assert cli.run(command(out, "--strategy", "knfu", "--workers", 0, "--json")) == 2  # it must be asked for
    assert cli.run(command(out, "--strategy", "knfu", "--workers", 0, "--resume", "--json")) == 0
    assert figures(results_in(out))[0] == figures(results_in(finished))[0]


def test_several_seeds_make_one_table(tmp_path):
    results = federate(
        "digits",
        tmp_path / "seeds",
        clients=3,
        models=["mlp"],
        rounds=1,
        seeds=(0, 1),
        workers=0,
        quiet=True,
        overrides=["train.epochs=null", "train.steps=3", "tune.epochs=null", "tune.steps=2", "partition.samples=30"],
    )
    (row,) = results["rows"]
    assert [run["folder"] for run in row["runs"]] == ["knfu/seed-0", "knfu/seed-1"]
    assert row["top1_sd"] is not None
    assert results["federation"][0]["clients"][0]["histogram"] != results["federation"][1]["clients"][0]["histogram"]


def test_one_folder_a_site(tmp_path):
    """Sites need not have all classes, and bring their own images to test on."""
    for site, classes in {"north": ["ant", "bee"], "south": ["bee", "cat"], "west": ["ant", "cat"]}.items():
        image_folder.make(tmp_path / "sites" / site, classes)
    image_folder.make(tmp_path / "shared", ["any", "other"])
    out = tmp_path / "out"
    more = ["--partition", "folder", "--transfer", f"folder:{tmp_path / 'shared'}", "--workers", "0", "--json"]
    given = [
        "federate",
        "--data",
        f"folder:{tmp_path / 'sites'}",
        "--out",
        str(out),
        "--rounds",
        "1",
        "--models",
        "mlp",
    ]
    quick = [one for one in QUICK if "=" in one and "limit" not in one]
    assert cli.run([*given, "--models", "mlp", *more, *quick]) == 0
    (record,) = results_in(out)["federation"]
    assert [client["name"] for client in record["clients"]] == ["north", "south", "west"]
    assert record["class_names"] == ["ant", "bee", "cat"]
    assert all(client["own_test"] for client in record["clients"])


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    assert cli.run(command(tmp_path / "dry", "--dry-run", "--strategy", "auto")) == 0
    shown = capsys.readouterr().out
    assert "client 2: timm/resmlp_tiny, 32 images to train on, 8 to validate" in shown
    assert "nothing was written" in shown
    assert not (tmp_path / "dry").exists()


BAD = [
    ("--strategy fedprox", "fedprox"),
    ("--strategy knfu,knfu", "different names"),
    ("--strategy fedavg", "one architecture"),
    ("--alpha 0.1 --partition shards", "--alpha"),
    ("--partition circles", "--partition circles"),
    ("--partition column", "partition.column"),
    ("--partition column:site", "parquet"),
    ("--clients 1", "--clients 1"),
    ("--clients 900 --samples 100", "900 clients"),
    ("--transfer 1.5", "--transfer 1.5"),
    ("--transfer folder:nowhere", "nowhere"),
    ("--models resnet18000", "resnet18000"),
    ("--rounds 0", "--rounds 0"),
    ("--seeds x", "--seeds"),
    ("--data nothing", "nothing"),
    ("fusion.betta=1", "betta"),
    ("transport.kind=top_k transport.top_k=11", "top_k=11"),
    ("method.name=fitnet", "predictions"),
    ("train.lr=1e30 train.optimizer=sgd", "finite"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[one for one, _ in BAD])
def test_bad_input_is_told_with_exit_code_2(arguments, words, tmp_path, capsys):
    assert cli.run([*command(tmp_path / "bad", "--workers", 0), *arguments.split()]) == 2
    shown = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert "given:" in shown
    assert "expected:" in shown
    assert "what to do:" in shown
    assert words in shown


def test_help_shows_an_example_and_the_strategies(capsys):
    assert cli.run(["federate", "--help"]) == 0
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "crossdistill federate --data digits --clients 10 --alpha 0.5" in shown
    from crossdistill.federated import STRATEGIES

    for record in STRATEGIES:
        assert record.name in shown

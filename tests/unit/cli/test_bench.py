"""``crossdistill bench speed`` takes what ``distill`` takes, but for what a step has not."""

import shlex

import pytest

from crossdistill import cli

DISTILL = "--teacher a --teacher b --student timm/resnet18 --method dkd --data digits train.lr=0.1 --class-map names"
SHARED = "--batch-size 7 --precision bf16 --limit-train 50 --image-size 24 --init weights.pth --device cpu --epochs 3"


@pytest.fixture
def asked(monkeypatch):
    """What a command line asks to be measured, or tried."""

    def run(line):
        seen = {}

        def measure(settings, **how):
            seen.update(settings=settings, **how)
            return {"dry_run": {}}

        monkeypatch.setattr("crossdistill.runs.bench_speed", measure)
        monkeypatch.setattr("crossdistill.runs.try_speed", measure)
        assert cli.run(shlex.split(line)) == 0
        return seen

    return run


@pytest.fixture
def distilled(monkeypatch):
    """The settings of a ``distill``."""

    def run(line):
        plans = []
        monkeypatch.setattr("crossdistill.runs.execute", lambda plan, *_, **__: plans.append(plan) or {"dry_run": {}})
        assert cli.run(shlex.split(line)) == 0
        return plans[0].settings

    return run


def test_the_settings_are_those_of_distill(asked, distilled):
    settings = asked(f"bench speed {DISTILL} {SHARED} --json")["settings"]
    assert settings == distilled(f"distill {DISTILL} {SHARED} --out run")


def test_steps_are_those_that_are_measured(asked):
    seen = asked(f"bench speed {DISTILL} --steps 7 --warmup 2 --trace here --json")
    assert (seen["steps"], seen["warmup"], str(seen["trace"])) == (7, 2, "here")
    assert seen["settings"].train.steps is None
    seen = asked(f"bench speed {DISTILL} --dry-run")
    assert (seen["steps"], seen["warmup"], seen["trace"]) == (20, 5, None)


@pytest.mark.parametrize("option", ["--out run", "--seeds 0,1", "--resume", "--baseline"])
def test_what_a_step_has_not_is_no_option(option, capsys):
    assert cli.run(shlex.split(f"bench speed {DISTILL} {option}")) == cli.EXIT_BAD_INPUT
    assert "no such option" in capsys.readouterr().err.lower()


def test_without_a_command_help_is_shown(capsys):
    assert cli.run(["bench"]) in (0, 2)  # older typer counts it as a success
    printed = "".join(capsys.readouterr())
    assert "speed" in printed
    assert "crossdistill bench speed" in printed


def test_help_states_the_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.run(["bench", "speed", "--help"]) == 0
    text = capsys.readouterr().out
    assert "20" in next(line for line in text.splitlines() if " --steps " in line)
    assert "optimiser steps" not in text.lower()

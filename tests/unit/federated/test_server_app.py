"""What a submitted run must say, and what only a simulation may ask for."""

import json

import pytest

from crossdistill.errors import InputError
from crossdistill.federated.server_app import read_config, run
from samples.federations import Run, small


def config(**changes):
    settings = small(**changes.pop("tree", {}))
    return {"settings": settings.model_dump_json(), "out": "/srv/run", **changes}


def test_a_config_is_read():
    settings, out, resume = read_config(config(resume=True))
    assert settings == small()
    assert (str(out), resume) == ("/srv/run", True)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"out": "/srv/run"}, "settings"),
        ({"settings": json.dumps({"data": {"source": "digits"}})}, "out"),
        (config(tree={"strategy": "centralised"}), "one place"),
        (config(tree={"models": [{"name": "file:net.py:build"}]}), "is code"),
    ],
)
def test_what_cannot_run_is_told(given, words):
    with pytest.raises(InputError, match=words):
        read_config(given)


def test_a_run_writes_results_and_report_and_is_finished(tmp_path, capsys):
    settings = small()
    grid = Run(settings, tmp_path).grid
    run(grid, settings, tmp_path / "out", resume=False)
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["federation"][0]["strategy"] == "knfu"
    assert results["federation"][0]["clients"][0]["histogram"] is None  # nobody is told in a deployment
    assert (tmp_path / "out/report.html").exists()
    with pytest.raises(InputError, match="--resume"):
        run(grid, settings, tmp_path / "out", resume=False)
    run(grid, settings, tmp_path / "out", resume=True)
    assert "finished before" in capsys.readouterr().out

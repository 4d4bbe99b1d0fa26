"""The environment names versions and hardware, its own checkout only, and nobody's machine."""

import getpass
import json
import platform
import socket
import subprocess
from pathlib import Path

import torch

from crossdistill.analysis.environment import checkout, environment

ROOT = Path(__file__).resolve().parents[3]


def git(folder, *arguments):
    identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@invalid")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_versions_and_hardware():
    facts = environment()
    assert facts["python"] == platform.python_version()
    assert facts["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["num_threads"] == torch.get_num_threads()
    assert len(facts["gpus"]) == torch.cuda.device_count()
    assert facts["cpu"]
    assert json.loads(json.dumps(facts)) == facts


def test_nothing_names_the_machine_or_its_user():
    words = json.dumps(environment())
    assert socket.gethostname() not in words
    assert str(Path.home()) + "/" not in words
    assert str(ROOT) not in words
    if len(getpass.getuser()) > 4:
        assert getpass.getuser() not in words


def test_commit_and_changes_of_a_checkout(tmp_path):
    git(tmp_path, "init")
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert checkout(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "untracked").write_text("a result")
    assert checkout(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "file").write_text("two")
    assert checkout(tmp_path) == {"commit": commit, "dirty": True}


def test_another_project_s_checkout_is_not_ours(tmp_path):
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "-m", "first")
    (tmp_path / "site-packages").mkdir()
    assert checkout(tmp_path / "site-packages") == {"commit": None, "dirty": None}
    assert checkout(tmp_path / "missing") == {"commit": None, "dirty": None}

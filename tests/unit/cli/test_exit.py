"""Whatever happens, the exit code says of what kind it was and standard error says what."""

import json
import subprocess
import sys
import warnings

import pytest

from crossdistill import __version__, cli
from crossdistill.errors import InputError, Interrupted

COMMANDS = ["", "quickstart", "train", "distill", "evaluate", "predict", "data", "methods", "models", "bench speed"]
RECIPES = ["recipes", "recipes ls", "recipes show", "recipes copy", "recipes run"]


@pytest.fixture
def meets(monkeypatch, capsys):
    """The exit code and what is printed when a command meets an error."""

    def run(error, *words):
        def fail(*arguments, **more):
            raise error

        monkeypatch.setattr("crossdistill.runs.describe_methods", fail)
        code = cli.run(["methods", *words])
        return code, capsys.readouterr()

    return run


def test_a_genuine_failure_is_1_and_shows_where(meets):
    code, printed = meets(RuntimeError("the disk melted"), "--json")
    assert code == cli.EXIT_FAILED == 1
    assert "Traceback (most recent call last)" in printed.err
    assert printed.err.endswith("failed: RuntimeError: the disk melted\n")
    assert json.loads(printed.out) == {"error": {"failed": "RuntimeError: the disk melted"}}


def test_bad_input_is_2_and_three_lines(meets):
    code, printed = meets(InputError("a [bold]cat[/bold]", "a dog", "swap them"))
    assert code == cli.EXIT_BAD_INPUT == 2
    assert printed.err == "     given: a [bold]cat[/bold]\n  expected: a dog\nwhat to do: swap them\n"
    assert printed.out == ""


@pytest.mark.parametrize("error", [Interrupted("saved in x"), KeyboardInterrupt()])
def test_an_interruption_is_130(meets, error):
    code, printed = meets(error, "--json")
    assert code == cli.EXIT_INTERRUPTED == 130
    assert printed.err == f"interrupted: {str(error) or 'stopped at once; checkpoints written before are whole'}\n"
    assert set(json.loads(printed.out)["error"]) == {"interrupted"}


@pytest.mark.parametrize(
    ("text", "said"), [("interrupted after step 3; kept", "after step 3; kept"), ("interrupted; go on", "go on")]
)
def test_an_interruption_is_said_once(meets, text, said):
    assert meets(Interrupted(text))[1].err == f"interrupted: {said}\n"


@pytest.mark.parametrize(
    ("command", "given"),
    [
        ("train --model a --data digits --out never", "--epochs 0"),
        ("distill --teacher a --student b --data digits --out never", "--batch-size -1"),
        ("store --teacher a --data digits --epochs 2 --out never", "--top-k 0"),
        ("store --teacher a --data digits --out never", "--epochs 0"),
        ("store --teacher a --data digits --epochs 2 --out never", "--part abc"),
        ("bench speed --teacher a --student b --data digits", "--steps 0"),
        ("bench speed --teacher a --student b --data digits", "--warmup -1"),
    ],
)
def test_a_number_that_nothing_takes_is_refused_before_torch_loads(command, given):
    line = f"import sys; from crossdistill import cli; code = cli.run({f'{command} {given}'.split()!r}); "
    done = subprocess.run(
        [sys.executable, "-c", f"{line}assert 'torch' not in sys.modules; sys.exit(code)"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == cli.EXIT_BAD_INPUT, done.stderr
    option, value = given.split()
    assert option in done.stderr
    assert value in done.stderr


def test_warnings_are_a_line_of_text(monkeypatch, capsys):
    def warn():
        warnings.warn("the moon is full", stacklevel=1)
        return []

    monkeypatch.setattr("crossdistill.runs.describe_methods", warn)
    assert cli.run(["methods", "--json"]) == 0
    assert capsys.readouterr().err == "warning: the moon is full\n"


def test_only_the_first_of_several_processes_prints_results(monkeypatch, capsys, meets):
    monkeypatch.setenv("RANK", "1")
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == ""
    code, printed = meets(InputError("a", "b", "c"), "--json")
    assert code == 2
    assert printed.out == ""
    assert printed.err.splitlines()[0] == "process 1,      given: a"


@pytest.mark.parametrize("command", [*COMMANDS, *RECIPES, "bench"])
def test_help_has_an_example_and_fits_80_columns(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.run([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    _, _, example = text.partition("Example:")
    assert example.lstrip().startswith(f"crossdistill {command}".strip())


def test_the_example_s_options_are_options(capsys):
    """Every option in an example is one that the same help lists."""
    for command in COMMANDS:
        cli.run([*command.split(), "--help"])
        _, _, rest = capsys.readouterr().out.partition("Example:")
        example, _, listed = rest.partition("╭")
        for word in example.split():
            assert not word.startswith("--") or f" {word} " in listed, (command, word)


def test_version_and_no_command(capsys):
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"crossdistill {__version__}\n"
    assert cli.run([]) in (0, 2)  # older typer counts it as a success
    assert "Commands" in "".join(capsys.readouterr())


def test_help_comes_without_torch():
    code = "import sys; from crossdistill import cli; cli.run(['train', '--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "crossdistill", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"crossdistill {__version__}\n")

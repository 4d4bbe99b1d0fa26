"""The command line: one file a command, thin over ``runs``; torch loads only once a command runs."""

from __future__ import annotations

import json
import sys
import traceback

from crossdistill.errors import InputError, Interrupted

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``crossdistill``. Exit code 1: the run failed, 2: bad input, 130: interrupted, resumable."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    from crossdistill.cli.app import call  # typer and rich load here

    try:
        return call(arguments)
    except InputError as error:
        _say(arguments, {"given": error.given, "expected": error.expected, "what to do": error.action})
        return EXIT_BAD_INPUT
    except (Interrupted, KeyboardInterrupt) as error:
        _say(arguments, {"interrupted": str(error) or "stopped before anything was saved"})
        return EXIT_INTERRUPTED
    except Exception as error:
        traceback.print_exc()
        _say(arguments, {"failed": f"{type(error).__name__}: {error}"})
        return EXIT_FAILED


def _say(arguments: list[str], facts: dict[str, str]) -> None:
    if "--json" in arguments:
        print(json.dumps({"error": facts}))
    width = max(map(len, facts))
    for key, value in facts.items():
        print(f"{key:>{width}}: {value}", file=sys.stderr)

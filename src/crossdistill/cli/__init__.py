"""The command line: one file a command, thin over ``runs``; torch loads only once a command runs."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from crossdistill.errors import InputError, Interrupted

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``crossdistill``. Exit code 1: the run failed, 2: bad input, 130: interrupted, resumable."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; of several processes only the first prints results."""
    with contextlib.ExitStack() as stack:
        if _rank():
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        return _run(arguments)


def _run(arguments: list[str]) -> int:
    from crossdistill.cli.app import call  # typer and rich load here

    try:
        with _plain_warnings():
            return call(arguments)
    except InputError as error:
        _say(arguments, {"given": error.given, "expected": error.expected, "what to do": error.action}, error.result)
        return EXIT_BAD_INPUT
    except (Interrupted, KeyboardInterrupt) as error:
        reason = str(error).removeprefix("interrupted").lstrip("; ")  # the word stands before it already
        _say(arguments, {"interrupted": reason or "stopped at once; checkpoints written before are whole"})
        return EXIT_INTERRUPTED
    except Exception as error:
        traceback.print_exc()
        _say(arguments, {"failed": f"{type(error).__name__}: {error}"})
        return EXIT_FAILED


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings as one line of text, without the line of code that gave them."""
    logging.getLogger("timm").setLevel(logging.ERROR)  # what it warns of, such as means for other channels, is meant
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        yield


def _say(arguments: list[str], facts: dict[str, str], result: Mapping[str, Any] | None = None) -> None:
    if "--json" in arguments:
        print(json.dumps({**(result or {}), "error": facts}))
    width = max(map(len, facts))
    speaker = f"process {_rank()}, " if _rank() else ""
    # In one piece, since several processes may say the same at the same time.
    print("\n".join(f"{speaker}{key:>{width}}: {value}" for key, value in facts.items()), file=sys.stderr)


def _rank() -> int:
    return int(os.environ.get("RANK", 0))

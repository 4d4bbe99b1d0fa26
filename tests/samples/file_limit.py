"""Run by a test in a process of its own: the command line, with no room for the second checkpoint and later files."""

import resource
import sys

from crossdistill import cli
from crossdistill.engine import checkpoint

LARGEST_FILE = 100_000
"""Bytes; any part of a checkpoint with weights in it is larger."""

write = checkpoint.write


def write_and_limit(*arguments, **more):
    path = write(*arguments, **more)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    return path


if __name__ == "__main__":
    checkpoint.write = write_and_limit
    cli.main(sys.argv[1:])

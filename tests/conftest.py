"""Fixtures for all tests."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# One thread for each test process, before torch starts any: two processes with two threads each wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """Path of a file that is kept beside the checkout and not part of it; the test skips where it is missing."""

    def find(relative: str) -> Path:
        path = Path(os.environ.get("CROSSDISTILL_SHARED", ROOT.parent / "shared")) / relative
        if not path.exists():
            pytest.skip(f"{relative} is not beside this checkout (set CROSSDISTILL_SHARED)")
        return path

    return find

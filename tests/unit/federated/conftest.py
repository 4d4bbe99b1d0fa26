"""A federation of each test, in folders of its own."""

import pytest

from samples.federations import Run, small


@pytest.fixture
def settings():
    return small()


@pytest.fixture
def run(tmp_path):
    def make(settings, apps=None, folder: str = "a"):
        return Run(settings, tmp_path / folder, apps)

    return make

"""A source that counts its reads."""


class Counting:
    """Another source, and the ids that were read of it in ``reads``."""

    def __init__(self, source):
        self.source, self.reads = source, []

    def __getattr__(self, name):
        return getattr(self.source, name)

    def read(self, index):
        self.reads.append(index)
        return self.source.read(index)

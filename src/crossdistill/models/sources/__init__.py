"""Where networks come from: one file a source, each with the interface in ``source.py``."""

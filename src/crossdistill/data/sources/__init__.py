"""One file for each kind of source, and what they share: names of splits, classes, decoding."""

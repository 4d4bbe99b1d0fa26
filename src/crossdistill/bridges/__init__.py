"""Modules that make two kinds of network comparable; they exist in training only."""

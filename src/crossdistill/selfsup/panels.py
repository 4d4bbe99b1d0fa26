"""Panels of a pretraining run's report."""

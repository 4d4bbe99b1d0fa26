"""Distil any teacher into any student, whatever the architecture."""

"""Distillation methods, one file each, named as published.

A file here registers its class with ``@METHODS.register``; nothing else has to know of it.
"""

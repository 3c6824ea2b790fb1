"""Backends whose password changes: one package each, to be copied into a project."""

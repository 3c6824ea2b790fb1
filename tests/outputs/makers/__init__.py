"""The functions that make the outputs, by what they run."""

from __future__ import annotations


def load() -> None:
    """Have all of them registered."""
    from tests.outputs.makers import commands, scenes, shop, tutorial  # noqa: F401 - for what that does

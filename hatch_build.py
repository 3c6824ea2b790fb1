"""Puts the sources of the documentation into the wheel, where reports and the command refer to them.

An editable install has them where they are.
"""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# The pages, and the project that they show; no pictures, which nobody sees in a terminal.
_PAGES = ("index.rst", "tutorial.rst", "how-to", "reference", "explanation")


class DocumentationHook(BuildHookInterface):  # type: ignore[misc, unused-ignore]
    """Adds the pages to a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add them, unless the install is editable."""
        if version == "standard":
            build_data["force_include"] |= {f"docs/{page}": f"conn_hygiene/docs/{page}" for page in _PAGES}

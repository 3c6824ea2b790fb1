"""Sphinx configuration: ``make docs`` builds into docs/_build/html, with warnings as errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

from conn_hygiene import __version__, internals

if TYPE_CHECKING:
    from collections.abc import Iterator

    from docutils import nodes
    from sphinx.application import Sphinx

project = "django-conn-hygiene"
author = "The conn_hygiene authors"
copyright = f"2026, {author}"
version = release = __version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.extlinks"]
exclude_patterns = ["_build"]

# A reference that leads nowhere is an error, even to a name in code.
nitpicky = True
nitpick_ignore_regex = [
    ("py:class", r"(collections\.abc|django|psycopg)\..*"),
    ("py:exc", r"django\..*|TypeError|ValueError|RuntimeError"),
]

# The docstrings say what the arguments are; the types would bury the names.
autodoc_typehints = "none"
autodoc_member_order = "bysource"

# Not intersphinx, which downloads a list of names at each build: the docs can be built without a network.
extlinks = {
    "django": ("https://docs.djangoproject.com/en/stable/%s", None),
    "postgresql": ("https://www.postgresql.org/docs/current/%s", None),
    "psycopg": ("https://www.psycopg.org/psycopg3/docs/%s", None),
    "ticket": ("https://code.djangoproject.com/ticket/%s", "ticket %s"),
}

html_theme = "furo"
html_title = f"django-conn-hygiene {release}"
html_show_sourcelink = False
html_copy_source = False


def setup(app: Sphinx) -> None:
    """Let the pages refer to settings and system checks by name."""
    app.add_crossref_type("setting", "setting")
    app.add_crossref_type("check", "check")
    app.add_directive("internals", Internals)


class Internals(SphinxDirective):
    """What the toolkit relies on, as the package itself has it: a section for each feature, with its names."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        lines = [line for feature in internals.FEATURES for line in _section(feature)]
        return self.parse_text_to_nodes(StringList(lines, source="internals.py"), allow_section_headings=True)


def _section(feature: internals.Feature) -> Iterator[str]:
    title = feature.key.replace("-", " ").capitalize()
    yield from (title, "~" * len(title), "", f"Without one of these: {feature.without}", "")
    yield from (".. list-table::", "   :widths: 45 55", "   :header-rows: 1", "", "   * - Name", "     - Used for")
    for name in internals.NAMES_OF[feature]:
        yield from (f"   * - ``{name}``", f"     - {name.why}")
    yield ""

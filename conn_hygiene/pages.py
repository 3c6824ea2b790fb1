"""Where the documentation is: at an address of the project's own, or as the files that come with the package.

The wheel has the sources of the pages in ``conn_hygiene/docs``; a checkout has them beside the package.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from conn_hygiene import conf

_PACKAGE = Path(__file__).resolve().parent


class Page(NamedTuple):
    """A page of the documentation."""

    #: Its path within the documentation, with no suffix: ``"how-to/doctor"``.
    name: str
    path: Path

    @property
    def title(self) -> str:
        """Its first line."""
        return self.path.read_text("utf-8").lstrip().partition("\n")[0].strip("`")


def directory() -> Path | None:
    """Return where the sources of the pages are; None where neither the package nor a checkout has them."""
    for found in (_PACKAGE / "docs", _PACKAGE.parent / "docs"):
        if (found / "index.rst").is_file():
            return found
    return None


def where(page: str) -> str:
    """Return where *page* is to be read: a URL where ``DOCS_URL`` is set, else a path. What follows ``#`` is kept.

    :param page: as ``"how-to/doctor.rst#too-many-connections"``.
    """
    name, hash_, place = page.partition("#")
    if url := conf.current.DOCS_URL:
        return f"{url.rstrip('/')}/{name.removesuffix('.rst')}.html{hash_}{place}"
    found = directory()
    return f"{found / name if found else f'docs/{name}'}{hash_}{place}"


def told(place: str) -> str:
    """Return what :func:`where` has returned, for people: a path can be opened as it stands there."""
    path, hash_, anchor = place.partition("#")
    return place if "://" in place or not hash_ else f"{path} ({anchor})"


def all_pages() -> list[Page]:
    """Return the pages of tutorial, how-to guides, reference and explanation, by name."""
    root = directory()
    if root is None:
        return []
    found = [*root.glob("*.rst"), *(path for part in _PARTS for path in (root / part).glob("*.rst"))]
    pages = [Page(path.relative_to(root).with_suffix("").as_posix(), path) for path in found]
    return sorted(page for page in pages if page.name not in _NO_PAGES)


_PARTS = ("how-to", "reference", "explanation")
# The table of contents, and a page that includes a file of the repository.
_NO_PAGES = ("index", "changelog")


def matching(name: str) -> list[Page]:
    """Return the pages that *name* may mean: one by its whole name, or those whose last part it is."""
    name = name.removesuffix(".rst").removesuffix(".html").strip("/")
    pages = all_pages()
    exact = [page for page in pages if page.name == name]
    return exact or [page for page in pages if page.name.rpartition("/")[2] == name]


# A title, and the line below it.
_TITLE = re.compile(r"^(?P<title>\S.*)\n(?P<line>([=~-])\3{2,})$", re.MULTILINE)


def section(text: str, anchor: str) -> str | None:
    """Return the section of the page *text* that has the label *anchor*; None if it has none."""
    label = re.search(rf"^\.\. _{re.escape(anchor)}:\n+", text, re.MULTILINE)
    if label is None:
        return None
    title = _TITLE.match(text, label.end())
    if title is None:
        return text[label.end() :]
    # It ends where one begins that is not below it.
    levels = "=-~"
    above = levels[: levels.index(title["line"][0]) + 1]
    following = (found for found in _TITLE.finditer(text, title.end()) if found["line"][0] in above)
    end = next((found.start() for found in following), len(text))
    # The label of the one that follows is not its own.
    return re.sub(r"(\n+\.\. _[^\n]*:)+\s*\Z", "", text[label.end() : end]).rstrip() + "\n"

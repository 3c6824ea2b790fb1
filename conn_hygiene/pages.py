"""Where the documentation is: at an address of the project's own, or as the files that come with the package.

The wheel has the sources of the pages in ``conn_hygiene/docs``; a checkout has them beside the package.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from conn_hygiene import conf

if TYPE_CHECKING:
    from collections.abc import Iterable

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


def alike(name: str, possible: Iterable[str]) -> list[str]:
    """Return those of the *possible* names of pages or sections that *name* may be meant for, the likeliest first."""
    spellings = {_last_part(each): each for each in possible}
    return [spellings[found] for found in difflib.get_close_matches(_last_part(name), spellings, cutoff=_ALIKE)]


# difflib's measure, from 0 to 1: a letter that is wrong or missing, and not another word.
_ALIKE = 0.75


def _last_part(name: str) -> str:
    """Return what is enough of a name: of ``"how-to/doctor"`` and of ``"conn_hygiene.W013"``."""
    return re.split(r"[/.]", name.lower())[-1]


# A title, and the line below it.
_ROLE = re.compile(r":[a-z:]+:(?=`)")
_TITLE = re.compile(r"^(?P<title>\S.*)\n(?P<line>([=~-])\3{2,})$", re.MULTILINE)

# What stands in front of one: a label, or the name by which settings and checks are referred to, in messages as well.
_PLACE = re.compile(r"^\.\. (?:_(?P<label>[^\n:]+):|(?:setting|check):: (?P<name>\S+))\n+", re.MULTILINE)


def places(text: str) -> dict[str, int]:
    """Return the names of the sections of the page *text*, and where they begin, in its order.

    A section has the names that stand in front of it; one without has its title as browsers show it behind a ``#``.
    """
    found = {place["label"] or place["name"]: place.end() for place in _PLACE.finditer(text)}
    named = set(found.values())
    for title in _TITLE.finditer(text):
        if title.start() not in named:
            found.setdefault(_slug(title), title.start())
    return dict(sorted(found.items(), key=lambda place: place[1]))


def place_of(text: str, anchor: str) -> str | None:
    """Return the name of the section of the page *text* that *anchor* means; None if it has none.

    It may be in other letters, large and small, and without what stands before a dot: ``"W013"`` is
    ``"conn_hygiene.W013"``. Or it is the title, as browsers show it.
    """
    there = places(text)
    return anchor if anchor in there else next(iter(_like(text, there, anchor.lower())), None)


def sections(anchor: str) -> list[tuple[Page, str]]:
    """Return the sections of whichever pages that *anchor* means, as :func:`place_of` does for one page."""
    there = [(page, place_of(page.path.read_text("utf-8"), anchor)) for page in all_pages()]
    return [(page, place) for page, place in there if place is not None]


def _like(text: str, there: dict[str, int], anchor: str) -> list[str]:
    spellings = {name: (name.lower(), name.lower().rpartition(".")[2], fragment(text, name)) for name in there}
    found = [name for name, possible in spellings.items() if anchor in possible]
    return found if len(found) == 1 else []


def fragment(text: str, place: str) -> str:
    """Return what leads a browser to the section *place* of the page *text*: a label, or else the title."""
    title = _TITLE.match(text, places(text)[place])
    return place if title is None or f".. _{place}:" in text else _slug(title)


def _slug(title: re.Match[str]) -> str:
    # As docutils makes it of the text that is shown, which a role's name is not part of.
    return "-".join(re.findall(r"[a-z0-9]+", _ROLE.sub("", title["title"].lower())))


def section(text: str, place: str) -> str:
    """Return the section of the page *text* that is called *place*, one of :func:`places`."""
    start = places(text)[place]
    title = _TITLE.match(text, start)
    if title is None:
        return text[start:]
    # It ends where one begins that is not below it.
    levels = "=-~"
    above = levels[: levels.index(title["line"][0]) + 1]
    following = (found for found in _TITLE.finditer(text, title.end()) if found["line"][0] in above)
    end = next((found.start() for found in following), len(text))
    # The names of the one that follows are not its own.
    ahead = [found.start() for found in _PLACE.finditer(text, title.end(), end) if not text[found.end() : end].strip()]
    return text[start : min([end, *ahead])].rstrip() + "\n"

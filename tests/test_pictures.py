"""The pictures of the documentation: drawn from the runs that are beside them, for both papers, and told in words."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import pytest

from example_project.pictures import pages
from example_project.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path

DIRECTORY = ROOT / "docs/pictures"
RUNS = json.loads((DIRECTORY / "runs.json").read_text())
SVG = "{http://www.w3.org/2000/svg}"


def test_the_pictures_are_those_of_the_runs(tmp_path: Path) -> None:
    names = pages.draw(RUNS, tmp_path)
    assert len(names) == 2 * len(pages.PICTURES)
    for name in names:
        assert (tmp_path / name).read_text() == (DIRECTORY / name).read_text(), 'Try "make pictures".'


@pytest.mark.parametrize("path", sorted(DIRECTORY.glob("*.svg")), ids=lambda path: path.stem)
def test_a_picture_needs_nothing_from_elsewhere(path: Path) -> None:
    text = path.read_text()
    assert "url(http" not in text
    assert "href" not in text
    assert all(f"<{name}" in text for name in ("title", "desc"))
    # Two papers, one picture: only colours differ.
    other = path.with_name(path.name.replace("-light", "-dark"))
    assert len(ET.parse(other).findall(f".//{SVG}text")) == len(ET.fromstring(text).findall(f".//{SVG}text"))


@pytest.mark.parametrize("name", pages.PICTURES)
def test_a_timeline_is_told_in_words_and_stays_on_its_sheet(name: str) -> None:
    root = ET.parse(DIRECTORY / f"{name}-light.svg").getroot()
    title, description = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert title is not None
    assert title.text
    assert description is not None
    assert len(str(description.text)) > 100
    width, height = (float(root.attrib[side]) for side in ("width", "height"))
    for text in root.iter(f"{SVG}text"):
        assert 0 <= float(text.attrib["x"]) <= width
        assert 0 <= float(text.attrib["y"]) <= height


def test_the_runs_show_what_the_pages_say() -> None:
    plain, toolkit = (pages.requests_of(RUNS[f"crowd-{key}"]) for key in ("plain", "toolkit"))
    # From the first query to the end of the request, and for each query.
    assert [len(request.checkouts) for request in plain.values()] == [1] * 8
    assert [len(request.checkouts) for request in toolkit.values()] == [2] * 8
    assert len(pages.letters(RUNS["crowd-plain"])) == len(pages.letters(RUNS["crowd-toolkit"])) == 2
    answers = [(line["request"], line["tenant"]) for line in RUNS["following"] if line["kind"] == "answer"]
    assert sorted(answers, key=lambda answer: answer[0]) == [(1, "7"), (2, None), (3, "")]
    discarded = [line["count"] for line in RUNS["forks"] if line["kind"] == "discarded"]
    assert discarded == [2, 2]

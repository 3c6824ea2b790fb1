"""What the pages show as the output of a program: each block says who makes it, and the comparison sees what counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from example_project.processes import ROOT
from tests.outputs import makers, pages
from tests.outputs.comparing import difference
from tests.outputs.making import MAKERS
from tests.outputs.pages import blocks

if TYPE_CHECKING:
    from pathlib import Path

makers.load()
BLOCKS = [block for page in pages.pages() for block in blocks(page)]


def test_every_output_of_the_pages_says_who_makes_it_or_why_nobody_does() -> None:
    unmarked = [block.place for block in BLOCKS if block.is_output and not block.kind]
    assert unmarked == [], "Mark them with '.. output: NAME' or '.. no output: REASON'; see tests/outputs."


def test_every_output_has_a_maker_and_every_maker_an_output() -> None:
    assert {block.mark for block in BLOCKS if block.kind == "output"} == set(MAKERS)


def test_no_mark_is_left_without_its_block() -> None:
    marks = sum(
        line.lstrip().startswith((".. output: ", ".. no output: ", "<!-- output: ", "<!-- no output: "))
        for page in pages.pages()
        for line in page.read_text().splitlines()
    )
    assert marks == sum(bool(block.kind) for block in BLOCKS)


REST = """\
Text::

   not a block that is looked at

.. output: one

.. code-block:: console
   :caption: a file

   $ python manage.py one
   One
     more

Then

   .. no output: a map

   .. code-block:: text

      two

.. code-block:: python

   >>> 1 + 1
   2

.. code-block:: console

   $ only a command
   $ and another
"""


def test_blocks_of_a_page() -> None:
    one, two, three, four = blocks(ROOT / "docs/page.rst", REST)
    assert (one.kind, one.mark, one.command) == ("output", "one", "$ python manage.py one")
    assert one.text == "$ python manage.py one\nOne\n  more"
    assert (two.kind, two.mark, two.text) == ("no output", "a map", "two")
    assert [block.is_output for block in (one, two, three, four)] == [True, True, True, False]
    assert three.kind == ""


README = """\
Text

    make demo    # a command

<!-- output: one -->

    One

    two

```python
    three
```
"""


def test_blocks_of_the_readme() -> None:
    command, one = blocks(ROOT / "README.md", README)
    assert not command.is_output
    assert (one.is_output, one.kind, one.mark, one.text) == (True, "output", "one", "One\n\ntwo")


def test_writing_an_output_leaves_the_rest_of_its_page(tmp_path: Path) -> None:
    page = tmp_path / "page.rst"
    page.write_text(REST)
    assert pages.write(page, {"one": "$ python manage.py one\nAnother\n\nand more"})
    assert page.read_text() == REST.replace("   One\n     more\n", "   Another\n\n   and more\n")
    assert not pages.write(page, {"one": "$ python manage.py one\nAnother\n\nand more"})


@pytest.mark.parametrize(
    ("shown", "made"),
    [
        ("(server pid 11840) has been idle for 6.2 s", "(server pid 7) has been idle for 12 min 3 s"),
        ("(server pid\n11840)", "(server\npid 7)"),
        ("long lines are\nbroken", "long lines\nare broken"),
        ("idle  7104  21 min 3 s  3 min 2 s  local  SELECT ?", "idle  9  1.0 s  0.5 s  local  CLOSE ALL; ..."),
        ("7121 waits for 7104", "12 waits for 9"),
        ("shop@web-1:4242", "shop@build-7.example:1"),
        ("PostgreSQL 15.18", "PostgreSQL 18.6"),
    ],
)
def test_what_is_another_each_time_is_no_difference(shown: str, made: str) -> None:
    assert difference(shown, made) == ""


@pytest.mark.parametrize(
    ("shown", "made"),
    [
        ("at /srv/shop/views.py:31 in order", "at /srv/shop/views.py:32 in order"),
        ("make 300; max_connections is 100", "make 400; max_connections is 100"),
        ("has been idle for 6.2 s", "has been held for 6.2 s"),
        ("{200: 40} in 1.8 s", "{200: 39, 500: 1} in 1.8 s"),
        ("active  7121  9.8 s  Lock: transactionid", "active  7121  9.8 s"),
    ],
)
def test_what_counts_is_a_difference(shown: str, made: str) -> None:
    assert shown.split(maxsplit=1)[0] in difference(shown, made)

"""Write the outputs of programs into the pages that show them, or compare: ``make docs-outputs``.

    python -m tests.outputs [--check] [--list] [NAME ...]

With names, only those outputs are made.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from example_project.processes import end_on_signals
from tests.outputs import makers, pages
from tests.outputs.comparing import difference
from tests.outputs.making import MAKERS, Stage, made

if TYPE_CHECKING:
    from tests.outputs.pages import Block

#: Makers wait most of their time.
_AT_ONCE = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of outputs; all by default")
    parser.add_argument(
        "--check", action="store_true", help="compare, change nothing, and exit with 1 over a difference"
    )
    parser.add_argument("--list", action="store_true", help="list the outputs, and what is not made here and why")
    options = parser.parse_args()
    makers.load()
    found = [block for page in pages.pages() for block in pages.blocks(page)]
    if options.list:
        _list(found)
        return
    if unknown := set(options.names) - set(MAKERS):
        parser.error(f"no output has the name {', '.join(sorted(unknown))}")
    end_on_signals()
    wanted = [block for block in found if block.kind == "output" and (not options.names or block.mark in options.names)]
    sys.exit(not (_check if options.check else _write)(wanted))


def _list(found: list[Block]) -> None:
    for block in found:
        if block.kind == "output":
            print(f"{block.mark:32} {block.place}")
    print("\nNot made here:")
    for block in found:
        if block.kind == "no output":
            print(f"{block.place:45} {block.mark}")


def _run(wanted: list[Block]) -> dict[str, str | BaseException]:
    """Return the text of each block by the name of its output, or why there is none."""

    results: dict[str, str | BaseException] = {}
    with Stage() as stage, ThreadPoolExecutor(_AT_ONCE) as executor:
        for shop in {MAKERS[block.mark].shop for block in wanted}:
            getattr(stage, shop or "directory")
        longest_first = sorted(wanted, key=lambda block: -MAKERS[block.mark].seconds)
        asked = {block.mark: executor.submit(_timed, stage, block) for block in longest_first}
        for block in wanted:
            error = asked[block.mark].exception()
            results[block.mark] = error or asked[block.mark].result()
    return results


def _timed(stage: Stage, block: Block) -> str:
    started = time.monotonic()
    text = made(MAKERS[block.mark], stage, block)
    print(f"{time.monotonic() - started:5.1f} s  {block.mark}", flush=True)
    return text


def _failures(results: dict[str, str | BaseException]) -> dict[str, BaseException]:
    return {name: result for name, result in results.items() if isinstance(result, BaseException)}


def _complain(results: dict[str, str | BaseException]) -> bool:
    for name, error in _failures(results).items():
        print(f"\n{name} could not be made: {type(error).__name__}: {error}", file=sys.stderr)
    return not _failures(results)


def _write(wanted: list[Block]) -> bool:
    results = _run(wanted)
    texts = {name: result for name, result in results.items() if isinstance(result, str)}
    for page in dict.fromkeys(block.page for block in wanted):
        # What differs in nothing but pids stays as it is: a change of a page should be one that is worth reading.
        changed = {
            block.mark: texts[block.mark]
            for block in wanted
            if block.page == page and block.mark in texts and difference(block.text, texts[block.mark])
        }
        if pages.write(page, changed):
            print(f"{page}: {', '.join(changed)}")
    return _complain(results)


def _check(wanted: list[Block]) -> bool:
    results = _run(wanted)
    same = True
    for block in wanted:
        result = results[block.mark]
        if isinstance(result, str) and (told := difference(block.text, result)):
            same = False
            print(f"\n{block.place}: {block.mark}\n{told}", file=sys.stderr)
    if not same:
        print('\n"make docs-outputs" writes what is printed now into the pages.', file=sys.stderr)
    return _complain(results) and same


if __name__ == "__main__":
    main()

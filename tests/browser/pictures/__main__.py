"""Take the pictures of all modules of this package, or of some: ``make screenshots``."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
import time
from pathlib import Path

from PIL import Image

from example_project.embedded import ROOT, database_url
from example_project.processes import end_on_signals
from tests.browser import pictures
from tests.browser.chromium import MISSING, browser_path

COLOURS = 48


def names() -> list[str]:
    found = (module.name for module in pkgutil.iter_modules(pictures.__path__))
    return sorted(name for name in found if not name.startswith("_"))


def shrink(path: Path) -> None:
    """Have few colours in the picture, as pages do: that makes a third of it."""
    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.browser.pictures", description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, default=ROOT / "docs" / "pictures")
    parser.add_argument("--only", action="append", choices=names(), metavar="NAME", help="one of: %(choices)s")
    options = parser.parse_args()
    if browser_path() is None:
        sys.exit(MISSING)
    end_on_signals()
    # Started once, for all of them.
    database_url()
    directory = options.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    for name in options.only or names():
        started = time.time()
        importlib.import_module(f"{pictures.__name__}.{name}").take_all(directory)
        for path in sorted(directory.glob("*.png")):
            # Those of this module alone: a file system may keep whole seconds only.
            if path.stat().st_mtime >= int(started):
                shrink(path)
                print(f"{path} ({path.stat().st_size // 1000} kB)")


if __name__ == "__main__":
    main()

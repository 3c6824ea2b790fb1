"""Run the tests, and those that fail once more, alone.

    python -m tests [what pytest takes]

Most tests here have threads and servers meet each other in real time, beside other tests that do the same, and a
machine that stands still for a second can fail one. As with ``python -m test --rerun`` of CPython, what fails is given
a second try, in a new process with nothing beside it, and is named at the end even if that passes: it is to be mended
all the same. What fails twice fails the run. So do more than :data:`MOST` of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

#: More failures than these are nobody's bad luck.
MOST = 12

# pytest's ExitCode: tests failed, and not one that was misused, interrupted or found none.
_TESTS_FAILED = 1


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="conn-hygiene-tests-") as cache:
        pytest = [sys.executable, "-m", "pytest", "-o", f"cache_dir={cache}"]
        code = subprocess.run([*pytest, *arguments], check=False).returncode
        failed = _failed(Path(cache))
        if code != _TESTS_FAILED or not 0 < len(failed) <= MOST:
            return code
        print(f"\n=== Once more, alone: {len(failed)} that failed", flush=True)
        again = subprocess.run([*pytest, *arguments, "--numprocesses=0", "--last-failed"], check=False).returncode
    if again == 0:
        print("=== Passed at the second try only, and to be mended:", *failed, sep="\n  ", flush=True)
    return again


def _failed(cache: Path) -> list[str]:
    """Return the tests of the last run that failed, as pytest's cache names them."""
    found = cache / "v" / "cache" / "lastfailed"
    return sorted(json.loads(found.read_text())) if found.exists() else []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

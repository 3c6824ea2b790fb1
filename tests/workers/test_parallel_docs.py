"""The scripts in the documentation of forks and of parallel work, run as they are printed there."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import psycopg
import pytest

from example_project.embedded import database_url
from example_project.processes import ROOT, environment, partner, shop_database
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("unmeasured")

PAGES = ["forks.rst", "parallel-work.rst"]
SCRIPT = re.compile(r"^\.\. code-block:: python\n   :caption: (\S+)\n\n((?:   .*\n|\n)+)", re.MULTILINE)
SCRIPTS = {name: code for page in PAGES for name, code in SCRIPT.findall((ROOT / "docs/how-to" / page).read_text())}

SHIPPED = 143
# The shop logs what the toolkit tells, and so what its catalogue has.
QUIET = '{"FOLLOWED_SETTINGS": [], "CLEAN_SESSIONS": "seen"}'
EXPECTED = {
    "with_fork.py": rf"(?s).*^shipped {SHIPPED}$.*",
    "with_forkserver.py": rf"\[\d+, {SHIPPED}\]",
    "with_spawn.py": f"shipped {SHIPPED}",
    "with_executor.py": rf"\[\d+, \d+, {SHIPPED}, \d+\]",
    "with_os_fork.py": "500 orders\nThe child ended with 0",
    "before_fork.py": "",
    "with_threads.py": rf"(\w+\n){{{SHIPPED - 1}}}\w+",
    "with_processes.py": r"(\[\]\n){4}\[\]",
}


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with shop_database(database_url()) as shop, partner(0, directory=tmp_path_factory.mktemp("carrier")) as carrier:
        # The scripts are outside of the clone that they are said to run in. The carrier's places are not all ASCII.
        yield environment(shop | carrier | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "REPORTS": QUIET})


@pytest.mark.parametrize("name", EXPECTED)
def test_script(env: dict[str, str], tmp_path: Path, name: str) -> None:
    script = tmp_path / name
    script.write_text(textwrap.dedent(SCRIPTS[name]))
    with psycopg.connect(env["DATABASE_URL"], autocommit=True) as watcher:
        finished = subprocess.run(
            [sys.executable, "-W", "error", script], env=env, capture_output=True, text=True, timeout=60, check=False
        )
        assert finished.returncode == 0, finished.stderr
        assert re.fullmatch(EXPECTED[name], finished.stdout.strip(), re.MULTILINE), finished.stdout
        assert finished.stderr == ""
        sessions = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        backends = f"{sessions} AND backend_type = 'client backend'"
        wait_until(lambda: watcher.execute(backends).fetchone() is None, "the script's sessions are gone")


def test_all_scripts_are_run() -> None:
    assert set(SCRIPTS) == set(EXPECTED)

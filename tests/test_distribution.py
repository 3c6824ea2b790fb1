"""What is published: the wheel and the source distribution, what is in them, and a wheel that is installed.

``DISTRIBUTIONS`` names a directory that has them, as ``make dist`` leaves them; else they are built here.
"""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.processes import unmeasured

if TYPE_CHECKING:
    from collections.abc import Iterator
    from email.message import Message

ROOT = Path(__file__).parent.parent
NAME = "django_conn_hygiene"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the directory of the two, built without a network."""
    if made := os.environ.get("DISTRIBUTIONS"):
        yield Path(made)
        return
    for needed in ("hatchling", "hatch_fancy_pypi_readme", "build", "twine"):
        pytest.importorskip(needed)
    directory = tmp_path_factory.mktemp("distributions")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(directory), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, env=unmeasured())
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Iterator[zipfile.ZipFile]:
    [path] = distributions.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return email.message_from_bytes(wheel.read(name))


def files(directory: str) -> set[str]:
    """Return the files below *directory* of this tree, as paths from its root, but for what Python and Sphinx make."""
    found = (path.relative_to(ROOT) for path in (ROOT / directory).rglob("*") if path.is_file())
    return {path.as_posix() for path in found if not {"__pycache__", "_build"} & set(path.parts)}


def test_the_wheel_is_the_package_and_its_documentation(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    pages = {"docs/index.rst", "docs/tutorial.rst"}.union(
        *map(files, ("docs/how-to", "docs/reference", "docs/explanation"))
    )
    assert names == files("conn_hygiene") | {f"conn_hygiene/{page}" for page in pages}
    assert "conn_hygiene/py.typed" in names


def test_it_says_what_it_is(metadata: Message) -> None:
    assert metadata["Name"] == "django-conn-hygiene"
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata["Description-Content-Type"] == "text/markdown"


def test_pypi_has_no_link_of_it_that_leads_nowhere(metadata: Message) -> None:
    description = metadata.get_payload(decode=True).decode()
    links = re.findall(r"\]\(([^)]*)\)|(?:src|href|srcset)=[\"']([^\"']*)", description)
    assert [link for pair in links for link in pair if link and not link.startswith(("https://", "http://"))] == []
    # The text of those that had none is there.
    assert "More of this in When not to use it." in description


def test_both_are_fit_for_pypi(distributions: Path) -> None:
    made = [str(path) for path in distributions.iterdir() if path.name.startswith(NAME)]
    assert len(made) == 2
    checked = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *made], check=False, capture_output=True, text=True
    )
    assert (checked.returncode, checked.stdout.count("PASSED")) == (0, 2), checked.stdout


def test_the_source_distribution_has_what_builds_and_tests_it(distributions: Path) -> None:
    [path] = distributions.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    needed = files("conn_hygiene") | files("tests") | files("docs/how-to")
    assert needed - names == set()
    assert {name.partition("/")[0] for name in names} == {
        *("conn_hygiene", "docs", "example_project", "tests"),
        *("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "SECURITY.md", "hatch_build.py"),
        *("pyproject.toml", ".gitignore", "PKG-INFO"),
    }
    assert [name for name in names if "__pycache__" in name or "/_build/" in name] == []


SETTINGS = """
from example_settings import DATABASES
SECRET_KEY = "installed"
INSTALLED_APPS = ["conn_hygiene"]
MIDDLEWARE = ["conn_hygiene.middleware.ConnectionHygieneMiddleware"]
USE_TZ = True
"""


class Project:
    """A project of somebody's who has installed the wheel, and has no checkout."""

    def __init__(self, place: Path, packages: Path) -> None:
        from django.db import connections

        wanted = ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT", "OPTIONS")
        database = {key: connections["default"].settings_dict[key] for key in wanted}
        (place / "example_settings.py").write_text(f"DATABASES = {{'default': {database!r}}}\n")
        (place / "installed_settings.py").write_text(SETTINGS)
        self._place = place
        self._environment = unmeasured() | {
            "PYTHONPATH": os.pathsep.join([str(packages), str(place)]),
            "DJANGO_SETTINGS_MODULE": "installed_settings",
        }

    def manage(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "django", *arguments]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, cwd=self._place, env=self._environment
        )
        return done.stdout


@pytest.fixture(scope="module")
def packages(distributions: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return where the wheel was installed, beside the packages that the tests run with."""
    [path] = distributions.glob("*.whl")
    directory = tmp_path_factory.mktemp("packages")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--target", str(directory), str(path)], check=True, capture_output=True, env=unmeasured())
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def project(packages: Path, tmp_path: Path, transactional_db: None) -> Project:
    return Project(tmp_path, packages)


@pytest.mark.django_db(transaction=True)
def test_what_is_installed_leads_to_pages_that_are_there(project: Project, packages: Path) -> None:
    project.manage("check", "--fail-level", "ERROR")
    report = project.manage("connections", "doctor", "--processes", "1", "--threads", "1")
    read = re.findall(r"^  Read: (\S+)(?: \((\S+)\))?$", report, re.MULTILINE)
    assert read
    for page, anchor in read:
        assert page.startswith(f"{packages}/conn_hygiene/docs/")
        assert f".. _{anchor}:" in Path(page).read_text() or not anchor


@pytest.mark.django_db(transaction=True)
def test_and_shows_them(project: Project, packages: Path) -> None:
    path = packages / "conn_hygiene/docs/how-to/doctor.rst"
    listed = dict(line.split("  ", 1) for line in project.manage("connections", "docs").splitlines())
    assert listed["how-to/doctor"].strip() == "Have settings and server looked over"
    assert project.manage("connections", "docs", "doctor").strip() == path.read_text().strip()
    assert project.manage("connections", "docs", "doctor", "--path").strip() == str(path)

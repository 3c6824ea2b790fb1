"""Where findings send their readers, and the pages of the documentation on a terminal."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from conn_hygiene import conf, pages
from conn_hygiene.management.commands.connections import MISUSED

DOCS = Path(__file__).parent.parent / "docs"
DOCTOR = DOCS / "how-to" / "doctor.rst"


def docs(*arguments: str) -> str:
    out = io.StringIO()
    call_command("connections", "docs", *arguments, stdout=out)
    return out.getvalue()


def test_a_page_is_a_file_of_this_machine() -> None:
    place = pages.where("how-to/doctor.rst#no-pool")
    assert place == f"{DOCTOR}#no-pool"
    assert pages.told(place) == f"{DOCTOR} (no-pool)"


@pytest.mark.parametrize("url", ["https://docs.example.com/conn", "https://docs.example.com/conn/"])
def test_or_at_an_address_of_the_projects_own(url: str, settings: Any) -> None:
    settings.CONN_HYGIENE = {"DOCS_URL": url}
    place = pages.where("how-to/doctor.rst#no-pool")
    assert place == "https://docs.example.com/conn/how-to/doctor.html#no-pool"
    assert pages.told(place) == place
    assert docs("doctor", "--path") == "https://docs.example.com/conn/how-to/doctor.html\n"


def test_the_pages_of_the_package_go_before_those_of_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "conn_hygiene"
    (tmp_path / "docs").mkdir()
    (package / "docs").mkdir(parents=True)
    monkeypatch.setattr(pages, "_PACKAGE", package)
    assert (pages.directory(), pages.all_pages()) == (None, [])
    assert pages.where("tutorial.rst") == "docs/tutorial.rst"
    (tmp_path / "docs" / "index.rst").touch()
    assert pages.directory() == tmp_path / "docs"
    (package / "docs" / "index.rst").touch()
    assert pages.directory() == package / "docs"


def test_all_pages_are_listed_with_their_titles() -> None:
    listed = dict(line.split(maxsplit=1) for line in docs().splitlines())
    parts = ("how-to", "reference", "explanation")
    assert set(listed) == {"tutorial"} | {
        f"{part}/{path.stem}" for part in parts for path in (DOCS / part).glob("*.rst")
    }
    assert listed["how-to/doctor"] == "Have settings and server looked over"
    assert listed["reference/connections-command"] == "manage.py connections"


@pytest.mark.parametrize("name", ["doctor", "how-to/doctor", "how-to/doctor.rst"])
def test_a_page_is_shown(name: str) -> None:
    assert docs(name) == DOCTOR.read_text().rstrip() + "\n"


def test_or_a_section_of_it() -> None:
    text = docs("doctor#no-pool")
    whole = DOCTOR.read_text()
    label, following = whole.index(".. _no-pool:"), whole.index(".. _pool-without-sizes:")
    assert text == whole[label:following].partition("\n")[2].strip() + "\n"
    assert docs("doctor#no-pool", "--path") == f"{DOCTOR} (no-pool)\n"


def test_each_setting_and_each_check_is_a_place() -> None:
    settings, checks = names_of("setting", "settings"), names_of("check", "checks")
    assert {f.name for f in dataclasses.fields(conf.Settings)} <= set(settings)
    for name in settings:
        title, line = docs(f"settings#{name}").splitlines()[:2]
        assert (title, set(line)) == (f"``{name}``", {"~"})
        slug = name.lower().replace("_", "-")
        assert docs(f"settings#{slug}", "--path") == f"{DOCS / 'reference' / 'settings.rst'} ({slug})\n"
    for name in checks:
        number = name.removeprefix("conn_hygiene.")
        text = docs(f"checks#{name}")
        assert text.startswith(f"{number}: ")
        assert text.count("~\n") == 1
        assert ".. check::" not in text
        assert docs(f"checks#{number.lower()}") == text


def names_of(kind: str, page: str) -> list[str]:
    text = (DOCS / "reference" / f"{page}.rst").read_text()
    return re.findall(rf"^\.\. {kind}:: (\S+)$", text, re.MULTILINE)


def test_a_section_without_a_label_goes_by_its_title() -> None:
    text = docs("testing#wait-for-reports")
    assert text.splitlines()[0] == "Wait for reports"
    assert docs("testing#wait-for-reports", "--path") == f"{DOCS / 'how-to' / 'testing.rst'} (wait-for-reports)\n"


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("W013", "checks#conn_hygiene.W013"),
        ("conn_hygiene.E002", "checks#conn_hygiene.E002"),
        ("RELEASE_AFTER", "settings#RELEASE_AFTER"),
        ("release_after", "settings#RELEASE_AFTER"),
        ("too-many-connections", "doctor#too-many-connections"),
    ],
)
def test_a_section_that_only_one_page_has_goes_by_its_name_alone(name: str, whole: str) -> None:
    assert docs(name) == docs(whole)
    assert docs(name, "--path") == docs(whole, "--path")


def test_a_page_goes_before_the_sections_of_others() -> None:
    assert docs("forks") == (DOCS / "how-to" / "forks.rst").read_text().rstrip() + "\n"


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (
            "nothing",
            r"'nothing' is no page of the documentation, and no section of one\. Without a name, .+ all\.",
        ),
        ("mend-it", r"'mend-it' may be (how-to/[a-z-]+#mend-it( or )?){3}\.$"),
        ("docter", r"'docter' is no page .+\. Did you mean doctor\?"),
        ("RELEASE_AFTR", r"'RELEASE_AFTR' is no page .+\. Did you mean RELEASE_AFTER.*\?"),
        ("docter#no-pool", r"'docter' is no page of the documentation\. Did you mean doctor\?"),
        ("W013#no-pool", r"'W013' is no page of the documentation\. Without a name, it lists all\."),
        (
            "settings#STATUS_DIRECTRY",
            r"The page .+ 'STATUS_DIRECTRY'\. Did you mean STATUS_DIRECTORY.*\?$",
        ),
        ("checks#w0013", r"The page \S+ has no section 'w0013'\. Did you mean conn_hygiene\.W013 or .+\?$"),
        ("doctor#too-many-conections", r"The page .+\. Did you mean too-many-connections( or too-many-clients)?\?$"),
        ("tutorial#nothing", r"The page tutorial has no section 'nothing'\. It has: .+, make-serve, .+\."),
    ],
)
def test_what_is_no_page_is_said_to_be_none(page: str, message: str) -> None:
    with pytest.raises(CommandError, match=message) as caught:
        docs(page)
    assert caught.value.returncode == MISUSED


def test_the_name_of_a_role_is_no_part_of_an_address(settings: Any) -> None:
    settings.CONN_HYGIENE = {"DOCS_URL": "https://docs.example.com"}
    address = "https://docs.example.com/reference/checks.html#w014-server-timing-is-on-without-a-middleware"
    assert docs("checks#W014", "--path") == f"{address}\n"

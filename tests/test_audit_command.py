"""`manage.py connections audit`: a project's URLs, or its tests, and what they leave in sessions unseen."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from django.test import SimpleTestCase, TransactionTestCase
from django.test.runner import DiscoverRunner
from django.urls import clear_url_caches, include, path, re_path
from django.views.decorators.http import require_POST

from conn_hygiene import conf, events
from conn_hygiene.management import auditing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.urls(__name__)]


def execute(query: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(query)


def clean(request: HttpRequest) -> HttpResponse:
    print("A view may print.")
    execute("SET t_app.tenant = '7'")
    return HttpResponse()


def become(request: HttpRequest) -> HttpResponse:
    execute("SELECT t_become('secret')")
    return HttpResponse()


def lock(request: HttpRequest, number: int = 7) -> StreamingHttpResponse:
    def body() -> Iterator[str]:
        execute("SELECT t_lock(7)")
        yield ""

    return StreamingHttpResponse(body())


def fail(request: HttpRequest) -> HttpResponse:
    raise ZeroDivisionError


urlpatterns = [
    path("clean/", clean),
    path("shop/", include([path("become/", become), path("lock/<int:number>/", lock)])),
    re_path(r"^lock/$", lock),
    re_path(r"^lock/(\d+)/$", lock),
    path("fail/", fail),
    path("post/", require_POST(clean)),
]


def refuse(request: HttpRequest) -> HttpResponse:
    return HttpResponse(status=int(request.GET.get("status", "403")))


def to_login(page: str) -> Callable[..., HttpResponse]:
    """Return a view that does what Django's ``redirect_to_login()`` does."""
    return lambda request: HttpResponseRedirect(page + quote(request.get_full_path()))


def gatekeeper(get_response: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Do what Django's ``LoginRequiredMiddleware`` does, with one page that is open to all."""
    log_in = to_login("/accounts/login/?next=")
    return lambda request: get_response(request) if request.path == "/here/" else log_in(request)


class Guarded:
    """URLs of which each wants somebody to log in, in a way of its own."""

    urlpatterns = (
        path("leak/", to_login("/accounts/login/?next=")),
        path("elsewhere/", to_login("https://sso.example.org/?back=")),
        path("bare/", lambda request: HttpResponseRedirect("/accounts/login/")),
        path("refused/", refuse),
        path("onward/", lambda request: HttpResponseRedirect("/leak/")),
        path("here/", become),
    )


# A class by itself would be what is marked.
guarded = pytest.mark.urls.with_args(Guarded)


@pytest.fixture(autouse=True)
def functions(transactional_db: None, settings: Any) -> Iterator[None]:
    settings.CONN_HYGIENE = {"FOLLOWED_SETTINGS": []}
    parameters = connection.get_connection_params() | {"cursor_factory": psycopg.Cursor}
    with psycopg.connect(**parameters, autocommit=True) as own:
        own.execute(
            """
            CREATE FUNCTION t_become(tenant text) RETURNS text LANGUAGE plpgsql AS
                $$BEGIN RETURN set_config('t_app.tenant', tenant, false); END$$;
            CREATE FUNCTION t_lock(key bigint) RETURNS void LANGUAGE sql AS $$SELECT pg_advisory_lock(key)$$
            """
        )
        yield
        own.execute("DROP FUNCTION t_become; DROP FUNCTION t_lock")
    connections.close_all()
    connection.close_pool()


def audit(*arguments: str, **options: Any) -> tuple[str, int, str]:
    """Return what it prints, its exit status, and what it says at the end."""
    out = io.StringIO()
    try:
        call_command("connections", "audit", *arguments, stdout=out, **options)
    except CommandError as error:
        return out.getvalue(), error.returncode, str(error)
    return out.getvalue(), 0, ""


FOUND = "Statements have left in their sessions what they do not say."


def test_urls_without_parameters_are_found() -> None:
    assert auditing.paths() == ["/clean/", "/shop/become/", "/lock/", "/fail/", "/post/"]


def test_all_urls_are_requested_and_what_they_leave_is_shown() -> None:
    out, status, end = audit()
    lines = out.splitlines()
    assert (status, end) == (1, f"{FOUND}\nNot audited to the end, since they failed: /fail/.")
    # The one that wants a POST.
    assert lines.pop(0) == "Views have answered at 4 of 5 paths; --verbosity 2 lists them."
    assert [line.split("  ")[0] for line in lines[:3]] == ["Database", "default", "default"]
    assert lines[0].split() == ["Database", "Left", "Statement", "Place"]
    assert "SET (t_app.tenant)" in lines[1]
    assert "SELECT t_become(?)" in lines[1]
    assert f"{__file__}:" in lines[1]
    assert "advisory lock (7)" in lines[2]
    assert lines[3:] == [
        'Set CONN_HYGIENE["FOLLOWED_SETTINGS"] to ["t_app.tenant"].',
        "Lock until the end of the transaction, with pg_advisory_xact_lock(). Or set "
        'CONN_HYGIENE["CLEAN_SESSIONS"] to "always", and keep the connection with hold_connection() for as long as it '
        "is needed.",
    ]
    assert "secret" not in out


def test_nothing_is_found_of_what_is_seen() -> None:
    assert audit("--urls", "/clean/", "/clean/?again") == ("Nothing was left in a session unseen.\n", 0, "")


def test_a_url_that_fails_is_said() -> None:
    assert audit("--urls", "/clean/", "/fail/") == (
        "Nothing was left in a session unseen.\n",
        3,
        "Not audited to the end, since they failed: /fail/.",
    )


UNANSWERED = "Not audited, since no view answers a GET there: /nowhere/ (404), /post/ (405)."


def test_a_url_that_nothing_answers_is_said_if_it_was_named(settings: Any) -> None:
    assert audit("--urls", "/nowhere/", "/clean/", "/post/", "/nowhere/") == (
        "Nothing was left in a session unseen.\n",
        3,
        UNANSWERED,
    )
    settings.MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
    assert audit("--urls", "/clean")[1:] == (3, "Not audited, since no view answers a GET there: /clean (301).")
    assert audit("--urls", "/shop/become/", "/nowhere/", "/post/", "/fail/")[1:] == (
        1,
        f"{FOUND}\nNot audited to the end, since they failed: /fail/.\n{UNANSWERED}",
    )


LOG_IN = "Nobody is logged in here. Tests that log in can be run in their place, with --test."


@guarded
@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("/leak/?x", "302, to log in"),
        ("/elsewhere/", "302, to log in"),
        ("/bare/", "302, to log in"),
        ("/refused/", "403"),
        ("/refused/?status=401", "401"),
    ],
)
def test_a_page_for_somebody_who_is_logged_in_is_said_if_it_was_named(named: str, told: str) -> None:
    said = f"Not audited, since no view answers a GET there: {named} ({told}).\n{LOG_IN}"
    assert audit("--urls", named) == ("Nothing was left in a session unseen.\n", 3, said)


@guarded
def test_a_page_that_is_no_request_is_said_if_it_was_named() -> None:
    said = "Not audited, since no view answers a GET there: /refused/?status=400 (400)."
    assert audit("--urls", "/refused/?status=400")[1:] == (3, said)
    # Nor is every redirect one to log in.
    assert audit("--urls", "/onward/")[1:] == (0, "")


@guarded
def test_a_project_that_lets_nobody_in_is_not_audited(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.MIDDLEWARE = [f"{__name__}.gatekeeper"]
    out, status, end = audit("--verbosity", "2")
    assert "302, to log in /onward/" in out
    # The one that is open to all is.
    assert (status, end) == (1, FOUND)
    monkeypatch.setattr(Guarded, "urlpatterns", Guarded.urlpatterns[:-1])
    clear_url_caches()
    assert audit() == (
        "Nothing was left in a session unseen.\n",
        3,
        f"Nothing was audited, since no view answers a GET at any of 5 paths.\n{LOG_IN}",
    )


@pytest.mark.parametrize("value", [None, 7, [("RELEASE_AFTER", 1)]], ids=str)
def test_a_setting_that_is_no_dictionary_is_the_system_checks_affair(value: Any, settings: Any) -> None:
    settings.CONN_HYGIENE = value
    assert audit("--urls", "/clean/")[1:] == (0, "")


@pytest.mark.parametrize("text", ["clean/", "http://x/", "//x/", ""])
def test_what_is_no_path_is_refused(text: str) -> None:
    out, _, end = audit("--urls", "/clean/", text)
    text = f"not a path that begins with one slash, such as '/orders/7/': {text!r}"
    assert (out, end) == ("", f"Error: argument --urls: {text}")


def test_the_same_place_is_shown_once() -> None:
    out, status, _ = audit("--urls", "/shop/become/", "/shop/become/?again")
    assert (len(out.splitlines()), status) == (3, 1)


def test_json_has_all_of_it() -> None:
    out, status, _ = audit("--urls", "/shop/become/", "/shop/become/?again", "--format", "json")
    [first, second] = json.loads(out)["found"]
    assert (first["request"], second["request"]) == ("GET /shop/become/", "GET /shop/become/")
    assert (first["statement"], first["names"], first["reason"]) == ("SELECT t_become(?)", ["t_app.tenant"], "SET")
    assert status == 1


@pytest.mark.parametrize("form", ["text", "json"])
def test_it_shows_no_values_whatever_the_log_has(form: str, settings: Any) -> None:
    settings.CONN_HYGIENE = {**settings.CONN_HYGIENE, "LOG_STATEMENTS": "raw"}
    out, _, _ = audit("--urls", "/shop/become/", "--format", form)
    assert "SELECT t_become(?)" in out
    assert "secret" not in out


def test_settings_and_listeners_are_as_before() -> None:
    before = conf.current, events.UnseenState.listeners
    audit("--urls", "/shop/become/")
    assert (conf.current, events.UnseenState.listeners) == before


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_terminal_shows_which_path_is_asked(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    terminal = Terminal()
    seen = []

    def ask(path: str) -> auditing.Answer:
        seen.append(terminal.getvalue().split("\r")[-2].rstrip())
        return request(path)

    request = auditing.request
    monkeypatch.setattr(auditing, "request", ask)
    out, status, _ = audit("--urls", "/clean/", "/clean/?of=a-long-query", "--format", form, stderr=terminal)
    assert seen == ["1 of 2: /clean/", "2 of 2: /clean/?of=a-long-que"]
    # It is gone in the end, and each was in its place.
    lines = terminal.getvalue().split("\r")
    assert (lines[-2:], {len(line) for line in lines[:-1]}) == ([" " * 29, ""], {29})
    assert "of 2" not in out
    assert status == 0


def test_elsewhere_nothing_is_shown_meanwhile() -> None:
    err = io.StringIO()
    assert audit("--urls", "/clean/", stderr=err)[1] == 0
    assert err.getvalue() == ""


def test_each_answer_is_listed_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    out, seen = io.StringIO(), []

    def ask(path: str) -> auditing.Answer:
        seen.append(out.getvalue())
        return request(path)

    request = auditing.request
    monkeypatch.setattr(auditing, "request", ask)
    call_command("connections", "audit", "--verbosity", "2", "--urls", "/clean/", "/clean/?again", stdout=out)
    assert seen == ["", "200 /clean/\n"]


class Audited(TransactionTestCase):
    """What a project's own tests may be; run by the command, and not by pytest."""

    __test__ = False
    # The functions are in it, and it is there.
    databases = {"default"}  # noqa: RUF012 - as Django has it

    def test_become(self) -> None:
        execute("SELECT t_become('secret')")

    def test_clean(self) -> None:
        execute("SET t_app.tenant = '7'")


class Failing(SimpleTestCase):
    __test__ = False

    def test_it(self) -> None:
        self.fail()


class Runner:
    """Runs tests on the database that is there, in the place of one that Django would make."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    @classmethod
    def add_arguments(cls, parser: Any) -> None:
        pass

    def run_tests(self, labels: list[str]) -> int:
        from unittest import TestLoader, TestResult

        # As Django's does.
        print(f"Found {len(labels)} test(s).")
        result = TestResult()
        TestLoader().loadTestsFromNames([f"{__name__}.{label}" for label in labels]).run(result)
        return len(result.failures) + len(result.errors)


@pytest.mark.parametrize(
    ("label", "status", "end"),
    [
        ("Audited.test_become", 1, FOUND),
        ("Audited.test_clean", 0, ""),
        ("Failing", 3, "The tests failed."),
    ],
)
def test_tests_are_run(label: str, status: int, end: str, settings: Any) -> None:
    settings.TEST_RUNNER = f"{__name__}.Runner"
    assert audit("--test", label)[1:] == (status, end)


class OnWhatIsThere(DiscoverRunner):
    """Django's, on the database that is there, and within tests that have set up all else."""

    def setup_test_environment(self, **_: Any) -> None:
        pass

    teardown_test_environment = setup_test_environment

    def setup_databases(self, **_: Any) -> list[Any]:
        return []

    def teardown_databases(self, old_config: Any, **_: Any) -> None:
        pass


@pytest.mark.parametrize("form", ["text", "json"])
def test_that_no_test_has_run_is_said(form: str, settings: Any) -> None:
    settings.TEST_RUNNER = f"{__name__}.OnWhatIsThere"
    out, *ending = audit("--test", "tests.testapp", "--format", form)
    assert out == "Nothing was left in a session unseen.\n" if form == "text" else json.loads(out)["found"] == []
    assert ending == [3, "Nothing was audited, since no test has run."]
    assert audit("--test", f"{__name__}.Audited.test_clean")[1:] == (0, "")
    assert audit("--test", f"{__name__}.Failing")[1:] == (3, "The tests failed.")


@pytest.mark.parametrize(
    ("what", "printed"),
    [(["--test", "Audited.test_clean"], "Found 1 test(s).\n"), (["--urls", "/clean/"], "A view may print.\n")],
)
def test_standard_output_has_json_alone_whatever_is_run(
    what: list[str], printed: str, settings: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.TEST_RUNNER = f"{__name__}.Runner"
    call_command("connections", "audit", "--format", "json", *what)
    out, err = capsys.readouterr()
    assert json.loads(out)["found"] == []
    assert err == printed


@pytest.mark.parametrize(
    ("path", "location", "login_url", "expected"),
    [
        ("/leak/", "/accounts/login/?next=/leak/", "/accounts/login/", True),
        ("/leak/", "https://sso.example/?back=http%3A%2F%2Ftestserver%2Fleak%2F", "/accounts/login/", True),
        ("/leak/?a=1", "/enter/?next=/leak/%3Fa%3D1", "/accounts/login/", True),
        ("/leak/?a=1", "/done/?from=/leak/", "/accounts/login/", False),
        ("/leak/", "/done/", "/accounts/login/", False),
        ("/", "/other/?u=http://host/", "/accounts/login/", False),
        ("/leak/", "/done/?u=//[x", None, False),
        ("/leak/", "https://[x/", "/accounts/login/", False),
    ],
)
def test_what_leads_to_where_one_logs_in(
    path: str, location: str, login_url: str | None, expected: bool, settings: Any
) -> None:
    settings.LOGIN_URL = login_url
    assert auditing._leads_to_login(path, location) is expected

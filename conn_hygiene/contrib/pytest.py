"""The pytest plugin: tests fail that leave connections behind, or hold one over what is slow.

It comes with the package, and does nothing unless it is asked to: by the option ``--connection-hygiene``, the ini
option ``connection_hygiene``, the marker of that name, or the fixture ``assert_released``. Nothing of Django is
imported before that.
"""

from __future__ import annotations

import functools
import inspect
import pkgutil
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from conn_hygiene.testing import assert_released as AssertReleased

_MARKER = (
    "connection_hygiene(enabled=True, *, slow=()): fail the test if it leaves a connection with a dead thread, a "
    "transaction or a cursor open, or state in a session; or if it holds a connection when one of the functions is "
    'called that *slow* names, such as "mysite.views.urlopen".'
)
_WATCH = pytest.StashKey[Any]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option and the ini option."""
    group = parser.getgroup("conn_hygiene")
    told = "fail each test that leaves a connection with a dead thread, a transaction or a cursor open, or state"
    group.addoption("--connection-hygiene", action="store_true", help=told)
    parser.addini("connection_hygiene", f"{told}: as the option --connection-hygiene", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", _MARKER)


@pytest.fixture
def assert_released() -> type[AssertReleased]:
    """Return :class:`conn_hygiene.testing.assert_released`: nothing is held while its block runs."""
    from conn_hygiene.testing import assert_released

    return assert_released


# ##### Around each test #####


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Begin to watch ahead of the fixtures."""
    if _is_wanted(item):
        _begin(item)
    return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail the test for what it has left when the fixtures are yet to be torn down, Django's transaction among them."""
    watch = item.stash.get(_WATCH, None)
    if watch is None:
        return (yield)
    # What fixtures have opened they may close when they are torn down.
    watch.excuse()
    held: list[str] = []
    with ExitStack() as stack:
        for name in _slow(item):
            stack.enter_context(mock.patch(name, _watched(name, held)))
        try:
            result = yield
        except BaseException:
            _add(item, "call", [*held, *watch.found()])
            raise
    _fail(item, [*held, *watch.found()])
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """Fail the test for what its fixtures have left."""
    watch = item.stash.get(_WATCH, None)
    if watch is None:
        return (yield)
    try:
        result = yield
        _fail(item, watch.found_told())
    finally:
        watch.end()
        del item.stash[_WATCH]
    return result


def _is_wanted(item: pytest.Item) -> bool:
    marker = item.get_closest_marker("connection_hygiene")
    if marker is None:
        return bool(item.config.getoption("--connection-hygiene") or item.config.getini("connection_hygiene"))
    enabled = marker.kwargs.get("enabled", marker.args[0] if marker.args else True)
    return bool(enabled)


def _slow(item: pytest.Item) -> Iterator[str]:
    for marker in item.iter_markers("connection_hygiene"):
        names = marker.kwargs.get("slow", ())
        yield from [names] if isinstance(names, str) else names


def _begin(item: pytest.Item) -> None:
    from django.core.exceptions import ImproperlyConfigured

    from conn_hygiene.reports.leftovers import Leftovers
    from conn_hygiene.testing import require_toolkit

    try:
        require_toolkit()
    except ImproperlyConfigured as error:
        raise pytest.UsageError(str(error)) from None
    watch = item.stash[_WATCH] = Leftovers()
    watch.begin()


def _watched(name: str, held: list[str]) -> Callable[..., Any]:
    """Return the function *name*, and have added to *held* what is held when it is called."""
    from conn_hygiene.testing import held_now

    try:
        function = pkgutil.resolve_name(name)
    except (AttributeError, ImportError, ValueError) as error:
        text = f"The marker connection_hygiene has slow={name!r}, which cannot be found: {error}"
        raise pytest.fail.Exception(text, pytrace=False) from None

    def look() -> None:
        held.extend(f"While {name} is called: {each}" for each in held_now())

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            look()
            return await function(*args, **kwargs)

        return call_async

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        look()
        return function(*args, **kwargs)

    return call


def _fail(item: pytest.Item, found: list[str]) -> None:
    if found:
        pytest.fail("\n".join([f"{item.name} fails the connection hygiene:", *found]), pytrace=False)


def _add(item: pytest.Item, when: str, found: list[str]) -> None:
    """Have *found* shown beside the failure that the test has already."""
    if found:
        item.add_report_section(when, "connection hygiene", "\n".join(found))

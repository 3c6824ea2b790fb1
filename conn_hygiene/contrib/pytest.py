"""The pytest plugin: tests fail that leave connections behind, or hold one over what is slow.

It comes with the package, and does nothing unless it is asked to: by the option ``--connection-hygiene``, the ini
option ``connection_hygiene``, the marker of that name, or the fixture ``assert_released``. Nothing of Django is
imported before that.
"""

from __future__ import annotations

import functools
import inspect
import pkgutil
from collections.abc import Collection
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from conn_hygiene.testing import assert_released as AssertReleased

_MARKER = (
    "connection_hygiene(enabled=True, *, slow=()): fail the test if it leaves a connection with a dead thread, a "
    "transaction or a cursor open, or state in a session; or if it holds a connection when one of the functions is "
    'called that *slow* names, such as "mysite.views.urlopen"; or if one that the test itself names is never called.'
)
_TAKES = (
    "it takes (enabled=True, *, slow=()), where enabled is True or False, and slow the name of a function, such as "
    '"mysite.views.urlopen", or a list of names.'
)
_WATCH = pytest.StashKey[Any]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option and the ini option."""
    group = parser.getgroup("conn_hygiene")
    told = "fail each test that leaves a connection with a dead thread, a transaction or a cursor open, or state"
    group.addoption("--connection-hygiene", action="store_true", help=told)
    parser.addini("connection_hygiene", f"{told}: as the option --connection-hygiene", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and read the ini option, which each test is going to ask for."""
    config.addinivalue_line("markers", _MARKER)
    try:
        config.getini("connection_hygiene")
    except (TypeError, ValueError, pytest.UsageError) as error:
        # Of which not every pytest says what it is about.
        raise pytest.UsageError(f"The ini option connection_hygiene is true or false: {error}") from None


@pytest.fixture
def assert_released() -> type[AssertReleased]:
    """Return :class:`conn_hygiene.testing.assert_released`: nothing is held while its block runs."""
    from conn_hygiene.testing import assert_released

    return assert_released


# ##### Around each test #####


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin to watch ahead of the fixtures.

    Around the hook it would be as early; but what refuses a test there keeps other wrappers from their beginning, and
    those of pytest itself fail at their end then.
    """
    __tracebackhide__ = True
    if _is_wanted(item):
        _begin(item)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail the test for what it has left when the fixtures are yet to be torn down, Django's transaction among them."""
    watch = item.stash.get(_WATCH, None)
    if watch is None:
        return (yield)
    # What fixtures have opened they may close when they are torn down.
    watch.excuse()
    slow = [_Slow(name) for name in _slow(item)]
    with ExitStack() as stack:
        for each in slow:
            stack.enter_context(mock.patch(each.name, each.watched()))
        try:
            result = yield
        except BaseException:
            _add(item, "call", [*_held(slow), *watch.found()])
            raise
    missed = [each.missed for each in slow if not each.is_called and each.name in _slow_itself(item)]
    _fail(item, [*_held(slow), *missed, *watch.found()])
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


# ##### What the markers say #####


class _Wish(NamedTuple):
    enabled: bool
    slow: tuple[str, ...]


def _wish(marker: pytest.Mark) -> _Wish:
    """Return what *marker* says.

    :raises pytest.UsageError: it says what it cannot.
    """
    __tracebackhide__ = True
    try:
        return _wished(*marker.args, **marker.kwargs)
    except TypeError:
        given = [*map(repr, marker.args), *(f"{name}={value!r}" for name, value in marker.kwargs.items())]
        raise pytest.UsageError(f"@pytest.mark.connection_hygiene({', '.join(given)}): {_TAKES}") from None


def _wished(enabled: object = True, *, slow: object = ()) -> _Wish:
    # What can be gone through only once would be empty the next time.
    if not isinstance(enabled, bool) or not isinstance(slow, Collection):
        raise TypeError
    names = (slow,) if isinstance(slow, str) else tuple(slow)
    if not all(isinstance(name, str) for name in names):
        raise TypeError
    return _Wish(enabled, names)


def _is_wanted(item: pytest.Item) -> bool:
    __tracebackhide__ = True
    # All of them are to be right; the closest one decides.
    wishes = [_wish(marker) for marker in item.iter_markers("connection_hygiene")]
    if wishes:
        return wishes[0].enabled
    return bool(item.config.getoption("--connection-hygiene") or item.config.getini("connection_hygiene"))


def _slow(item: pytest.Item) -> list[str]:
    """Return which functions are slow, each once."""
    return _names(item.iter_markers("connection_hygiene"))


def _slow_itself(item: pytest.Item) -> list[str]:
    """Return which of them the test itself names. Of those that its class or module does, it may call none."""
    written = getattr(getattr(item, "obj", None), "pytestmark", ())
    return _names(marker for marker in written if marker.name == "connection_hygiene")


def _names(markers: Iterable[pytest.Mark]) -> list[str]:
    return list(dict.fromkeys(name for marker in markers for name in _wish(marker).slow))


# ##### The watch #####


def _begin(item: pytest.Item) -> None:
    __tracebackhide__ = True
    from django.core.exceptions import ImproperlyConfigured

    from conn_hygiene.reports.leftovers import Leftovers
    from conn_hygiene.testing import require_toolkit

    try:
        require_toolkit()
    except ImproperlyConfigured as error:
        raise pytest.UsageError(str(error)) from None
    watch = item.stash[_WATCH] = Leftovers()
    watch.begin()


class _Slow:
    """A function that is slow, and what is held when it is called."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_called = False
        self.held: list[str] = []

    @property
    def missed(self) -> str:
        return (
            f"{self.name} was never called, so nothing was checked. It is watched under this name only, as with "
            "mock.patch(): name it where it is looked up. What the test itself replaces is not watched."
        )

    def watched(self) -> Any:
        """Return what takes the function's place, a method of the same kind if it is one: at each call it looks."""
        function = self._function()
        owner, _, name = self.name.rpartition(".")
        cls = pkgutil.resolve_name(owner) if owner else None
        if not inspect.isclass(cls):
            return self._watching(function)
        # As it stands in the class, which binds it to an instance or to itself, or does not.
        method = inspect.getattr_static(cls, name)
        if isinstance(method, classmethod):
            return classmethod(self._watching(method.__func__))
        if isinstance(method, staticmethod) or not hasattr(type(method), "__get__"):
            return staticmethod(self._watching(function))
        return self._watching(function)

    def _watching(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def call_async(*args: Any, **kwargs: Any) -> Any:
                self._look()
                return await function(*args, **kwargs)

            return call_async

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self._look()
            return function(*args, **kwargs)

        return call

    def _function(self) -> Callable[..., Any]:
        try:
            found: object = pkgutil.resolve_name(self.name)
        except (AttributeError, ImportError, ValueError) as error:
            raise self._refused(f"which cannot be found: {error}") from None
        if ":" in self.name:
            raise self._refused("which mock.patch() does not take: have a dot in place of the colon")
        if not callable(found):
            raise self._refused(f"which is no function: {found!r}")
        return found

    def _refused(self, what: str) -> BaseException:
        text = f"The marker connection_hygiene has slow={self.name!r}, {what}"
        return pytest.fail.Exception(text, pytrace=False)

    def _look(self) -> None:
        from conn_hygiene.testing import held_now

        self.is_called = True
        self.held.extend(f"While {self.name} is called: {each}" for each in held_now())


def _held(slow: Iterable[_Slow]) -> list[str]:
    return [text for each in slow for text in each.held]


def _fail(item: pytest.Item, found: list[str]) -> None:
    if found:
        pytest.fail("\n".join([f"{item.name} fails the connection hygiene:", *found]), pytrace=False)


def _add(item: pytest.Item, when: str, found: list[str]) -> None:
    """Have *found* shown beside the failure that the test has already."""
    if found:
        item.add_report_section(when, "connection hygiene", "\n".join(found))

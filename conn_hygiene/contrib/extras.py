"""What is said where an extra of the package is missing."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def extra(name: str, *, needs: str) -> Iterator[None]:
    """Have what cannot be imported inside be told with the extra *name*, which installs the distribution *needs*.

    :raises ImportError: it is missing, or too old.
    """
    try:
        yield
    except ImportError as error:
        module = f"conn_hygiene.contrib.{name.replace('-', '_')}"
        text = f'{module} needs {needs}: pip install "django-conn-hygiene[{name}]" ({error})'
        raise type(error)(text, name=error.name, path=error.path) from error

"""Make a shop's database fit for the pages: ``python -m example_project.benchmarks.pages.prepare``.

Prints the cookie of a visitor who may see all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import django

if TYPE_CHECKING:
    from django.contrib.auth.models import User

TASKS = 9

# Whose tables are made. The shop's are there, without those of its tenants: a database with policies has every session
# cleaned.
APPLICATIONS = (
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.sites",
    "todo",
)


def main() -> None:
    django.setup()
    from django.apps import apps
    from django.conf import settings
    from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
    from django.contrib.auth.models import User
    from django.contrib.sessions.backends.db import SessionStore
    from django.core.management import call_command

    for name in filter(apps.is_installed, APPLICATIONS):
        call_command("migrate", name.rpartition(".")[2], verbosity=0)
    user = User.objects.create_superuser("clerk")
    if apps.is_installed("todo"):
        fill_todo_list(user)
    session = SessionStore()
    session[SESSION_KEY] = str(user.pk)
    session[BACKEND_SESSION_KEY] = settings.AUTHENTICATION_BACKENDS[0]
    session[HASH_SESSION_KEY] = user.get_session_auth_hash()
    session.create()
    print(f"{settings.SESSION_COOKIE_NAME}={session.session_key}")


def fill_todo_list(user: User) -> None:
    """Make a list of tasks, each of which asks for who has made it, and twice for whom it is for."""
    from django.apps import apps
    from django.contrib.auth.models import Group

    # It may not be installed, and nobody tells its types.
    model: Any = apps.get_model
    tasks = model("todo", "TaskList").objects.create(
        name="Orders", slug="orders", group=Group.objects.create(name="Clerks")
    )
    for number in range(TASKS):
        task = model("todo", "Task").objects.create(
            title=f"Pack order {number}", task_list=tasks, created_by=user, note="Mind the glass."
        )
        task.assigned_to.add(user)


if __name__ == "__main__":
    main()

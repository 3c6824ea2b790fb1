"""Prepare the site's database: its tables, its operator, and some orders."""

from __future__ import annotations

import os

import django
from django.core.management import call_command


def main() -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.adminsite.settings"
    django.setup()

    from django.contrib.auth.models import Permission, User

    from tests.testapp.models import Item

    call_command("migrate", run_syncdb=True, verbosity=0)
    operator = User.objects.create_user("operator", password="operator", is_staff=True)
    operator.user_permissions.set(Permission.objects.filter(content_type__app_label="conn_hygiene_admin"))
    Item.objects.bulk_create(Item(name=f"order {number}") for number in range(1, 10))


main()

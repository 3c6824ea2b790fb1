"""The model that the permissions hang on. Nothing is done in the database: it has no table."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    """As ``makemigrations`` wrote it."""

    initial = True
    operations = [  # noqa: RUF012 - as Django declares it
        migrations.CreateModel(
            name="Connections",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
            ],
            options={
                "verbose_name": "connection",
                "verbose_name_plural": "connections",
                "permissions": [("terminate_session", "Can terminate sessions")],
                "managed": False,
                "default_permissions": ("view",),
                "base_manager_name": "objects",
            },
        ),
    ]

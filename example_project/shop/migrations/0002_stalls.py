from __future__ import annotations

from typing import Any

from django.db import migrations, models

from example_project.shop.tenants import STALLS, schema_of

# A table for each stall, in a schema of its own.
SCHEMAS = [
    statement
    for stall in STALLS
    for statement in (
        f"CREATE SCHEMA {schema_of(stall)}",
        f"CREATE TABLE {schema_of(stall)}.offer (id bigserial PRIMARY KEY, stall text NOT NULL, name text NOT NULL)",
        f"INSERT INTO {schema_of(stall)}.offer (stall, name) "
        f"SELECT '{stall}', '{stall.title()} no. ' || n FROM generate_series(1, 3) n",
    )
]
NO_SCHEMAS = [f"DROP SCHEMA {schema_of(stall)} CASCADE" for stall in STALLS]

# One table for all, and a policy. What nobody has set is NULL, and what was reset is '': neither is a stall.
POLICY = [
    "CREATE TABLE shop_sharedoffer (id bigserial PRIMARY KEY, stall text NOT NULL, name text NOT NULL)",
    *(
        f"INSERT INTO shop_sharedoffer (stall, name) "
        f"SELECT '{stall}', '{stall.title()} no. ' || n FROM generate_series(1, 3) n"
        for stall in STALLS
    ),
    "CREATE POLICY own_stall ON shop_sharedoffer USING (stall = current_setting('shop.stall', true))",
    "ALTER TABLE shop_sharedoffer ENABLE ROW LEVEL SECURITY",
    # The table's owner is bound by it, too.
    "ALTER TABLE shop_sharedoffer FORCE ROW LEVEL SECURITY",
    """
    CREATE FUNCTION become_stall(name text) RETURNS void LANGUAGE plpgsql AS
    $$ BEGIN PERFORM set_config('shop.stall', name, false); END $$
    """,
]
NO_POLICY = ["DROP TABLE shop_sharedoffer", "DROP FUNCTION become_stall(text)"]

FIELDS: list[tuple[str, models.Field[Any, Any]]] = [
    ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
    ("stall", models.TextField()),
    ("name", models.TextField()),
]


class Migration(migrations.Migration):
    dependencies = [("shop", "0001_initial")]

    operations = [
        migrations.RunSQL(tuple(SCHEMAS), tuple(NO_SCHEMAS)),
        migrations.RunSQL(tuple(POLICY), tuple(NO_POLICY)),
        migrations.CreateModel("SchemaOffer", FIELDS, options={"managed": False, "db_table": "offer"}),
        migrations.CreateModel("SharedOffer", FIELDS, options={"managed": False}),
    ]

from django.db import migrations, models


def place_orders(apps, schema_editor):
    Order = apps.get_model("orders", "Order")
    Order.objects.bulk_create(Order(number=f"PARCEL-{n}") for n in range(1, 9))


class Migration(migrations.Migration):
    initial = True

    operations = [
        migrations.CreateModel(
            name="Order",
            fields=[
                ("id", models.BigAutoField(primary_key=True)),
                ("number", models.TextField()),
                ("place", models.TextField(default="")),
            ],
        ),
        migrations.RunPython(place_orders),
    ]

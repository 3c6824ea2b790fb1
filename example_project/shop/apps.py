from django.apps import AppConfig
from django.conf import settings


class ShopConfig(AppConfig):
    name = "example_project.shop"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        if getattr(settings, "WATCHED", False):
            from example_project.shop import watching

            watching.watch()

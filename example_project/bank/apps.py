from django.apps import AppConfig


class BankConfig(AppConfig):
    name = "example_project.bank"
    default_auto_field = "django.db.models.BigAutoField"

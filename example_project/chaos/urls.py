from __future__ import annotations

from django.urls import include, path

urlpatterns = [
    path("bank/", include("example_project.bank.urls")),
    path("", include("example_project.shop.urls")),
]

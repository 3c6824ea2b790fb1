"""The shop, its admin, and the pages that the other benchmarks ask for."""

from __future__ import annotations

from django.apps import apps
from django.contrib import admin
from django.urls import include, path

from example_project.benchmarks.pages import views
from example_project.benchmarks.views import handler500
from example_project.benchmarks.views import urlpatterns as _others

__all__ = ["handler500", "urlpatterns"]

urlpatterns = [
    path("overview/", views.overview),
    path("admin/", admin.site.urls),
    *([path("todo/", include("todo.urls"))] if apps.is_installed("todo") else []),
    *_others,
    path("", include("example_project.shop.urls")),
]

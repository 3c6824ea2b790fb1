from __future__ import annotations

from django.contrib.staticfiles.views import serve
from django.urls import include, path

urlpatterns = [
    # Django's own way to serve them, but with DEBUG off, too: nothing stands in front of a site that is only tried.
    path("static/<path:path>", serve, {"insecure": True}),
    path("", include("example_project.shop.urls")),
]

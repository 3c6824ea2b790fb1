from __future__ import annotations

from django.conf import settings
from django.contrib.staticfiles.views import serve
from django.http import HttpResponse
from django.urls import include, path

urlpatterns = [
    # Django's own way to serve them, but with DEBUG off, too: nothing stands in front of a site that is only tried.
    path("static/<path:path>", serve, {"insecure": True}),
    path("", include("example_project.shop.urls")),
]

if settings.TOOLS:
    from django.contrib import admin

    urlpatterns += [
        path("admin/", admin.site.urls),
        path("__debug__/", include("debug_toolbar.urls")),
        # Browsers ask for it where a page names none, as the admin's do.
        path("favicon.ico", lambda request: HttpResponse(status=204)),
    ]

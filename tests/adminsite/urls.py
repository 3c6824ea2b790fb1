"""The default admin site, one of the project's own, and a shop."""

from __future__ import annotations

from django.contrib import admin
from django.http import HttpResponse
from django.urls import path

from conn_hygiene.contrib.admin.admin import ConnectionsAdmin
from conn_hygiene.contrib.admin.models import Connections
from tests.adminsite import views

own_site = admin.AdminSite(name="operations")
own_site.register(Connections, ConnectionsAdmin)

# Nobody who runs tests wants to wait.
ConnectionsAdmin.refresh_seconds = 0.5

urlpatterns = [
    path("admin/", admin.site.urls),
    path("operations/", own_site.urls),
    path("orders/<int:number>/pay/", views.pay),
    path("orders/<int:number>/ship/", views.ship),
    path("let-go/", views.let_go),
    path("hold-again/", views.hold_again),
    # Browsers ask for it, and complain.
    path("favicon.ico", lambda request: HttpResponse(status=204)),
]

from __future__ import annotations

from django.urls import path

from example_project.shop import views

urlpatterns = [
    path("", views.index, name="index"),
    path("orders/<int:pk>/", views.order, name="order"),
    path("orders/<int:pk>/async/", views.order_async, name="order-async"),
    path("orders/<int:pk>/events/", views.order_events, name="order-events"),
    path("orders/<int:pk>/advance/", views.advance_order, name="order-advance"),
    path("report/", views.report, name="report"),
    path("checkout/", views.checkout, name="checkout"),
    path("connections/", views.connections, name="connections"),
    path("session/", views.session, name="session"),
]

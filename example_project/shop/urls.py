from __future__ import annotations

from django.urls import path

from example_project.shop import trouble, views, visitors, watching

urlpatterns = [
    path("", views.index, name="index"),
    path("orders/<int:pk>/", views.order, name="order"),
    path("orders/<int:pk>/async/", views.order_async, name="order-async"),
    path("orders/<int:pk>/events/", views.order_events, name="order-events"),
    path("orders/<int:pk>/advance/", views.advance_order, name="order-advance"),
    path("report/", views.report, name="report"),
    path("checkout/", views.checkout, name="checkout"),
    path("connections/", views.connections, name="connections"),
    path("compare/<str:side>/", visitors.compare, name="compare"),
    path("pool/", watching.pool, name="pool"),
    path("session/", views.session, name="session"),
    path("schemas/<str:schema>/", views.schema_offers, name="schema-offers"),
    path("stalls/<str:stall>/", views.shared_offers, name="shared-offers"),
    path("stalls/", views.shared_offers, name="nobodys-offers"),
    path("trouble/idle-in-transaction/", trouble.idle_in_transaction, name="idle-in-transaction"),
    path("trouble/asked-before/", trouble.asked_before, name="asked-before"),
    path("trouble/unclosed-cursor/", trouble.unclosed_cursor, name="unclosed-cursor"),
    path("trouble/dead-thread/", trouble.dead_thread, name="dead-thread"),
    path("trouble/held-too-long/", trouble.held_too_long, name="held-too-long"),
]

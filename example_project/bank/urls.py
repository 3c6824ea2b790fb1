from __future__ import annotations

from django.urls import path

from example_project.bank import views

urlpatterns = [
    path("transfer/", views.transfer, name="bank-transfer"),
    path("note/", views.note, name="bank-note"),
    path("total/", views.total, name="bank-total"),
    path("slow/<int:seconds>/", views.slow, name="bank-slow"),
    path("pool/", views.pool, name="bank-pool"),
    path("process/", views.process, name="bank-process"),
]

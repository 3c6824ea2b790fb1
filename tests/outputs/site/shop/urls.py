# mypy: ignore-errors
from django.urls import path

from shop import views

urlpatterns = [
    path("", views.index),
    path("invoices/", views.invoices),
    path("report/", views.report),
    path("orders/<int:pk>/", views.order),
]

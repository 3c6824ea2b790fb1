from django.urls import path

from orders import views

urlpatterns = [
    path("orders/<int:pk>/", views.order),
    path("orders/<int:pk>/async/", views.order_async),
]

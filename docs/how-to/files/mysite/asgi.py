import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")

# Sets Django up, which what follows needs.
django_application = get_asgi_application()

from channels.routing import ProtocolTypeRouter, URLRouter
from django.urls import path

from conn_hygiene.contrib.channels import ConnectionHygieneMiddleware
from orders.consumers import OrderConsumer

sockets = URLRouter([path("ws/orders/<int:pk>/", OrderConsumer.as_asgi())])

application = ProtocolTypeRouter(
    {
        "http": django_application,
        "websocket": ConnectionHygieneMiddleware(sockets),
    }
)

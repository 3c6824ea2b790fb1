from conn_hygiene import closing_connections, release_between_queries
from orders import services
from orders.models import Order


@closing_connections
@release_between_queries
def track(pk):
    services.track(pk)


@closing_connections
def report():
    underway = Order.objects.exclude(place="").count()
    print(f"{underway} orders are on their way.", flush=True)

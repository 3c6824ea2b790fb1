from orders import carrier
from orders.models import Order


def track(pk):
    """Ask the carrier where an order is, and save it."""
    order = Order.objects.get(pk=pk)
    order.place = carrier.track(order.number)  # slow
    order.save(update_fields=["place"])
    return order.place


async def atrack(pk):
    order = await Order.objects.aget(pk=pk)
    order.place = await carrier.atrack(order.number)  # slow
    await order.asave(update_fields=["place"])
    return order.place

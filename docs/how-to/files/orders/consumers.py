from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer

from orders import services
from orders.models import Order


class OrderConsumer(AsyncWebsocketConsumer):
    async def connect(self):
        self.pk = self.scope["url_route"]["kwargs"]["pk"]
        await self.accept()
        order = await Order.objects.aget(pk=self.pk)
        await self.send(order.number)

    async def receive(self, text_data=None, bytes_data=None):
        place = await database_sync_to_async(services.track)(self.pk)
        await self.send(place)

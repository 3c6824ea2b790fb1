"""The customers of the demo: locust runs as many of them as it is told.

They never pause, so that what limits them is the shop and nothing else.
"""

from __future__ import annotations

import os
import random

from locust import FastHttpUser, task

ORDERS = int(os.environ.get("SHOP_ORDERS", "500"))


class Customer(FastHttpUser):
    @task
    def order(self) -> None:
        """Look at an order: the page that waits for the carrier."""
        path = f"/orders/{random.randint(1, ORDERS)}/"
        with self.client.get(path, name="order", catch_response=True) as response:
            if response.status_code == 503:
                # The shop answers so when its pool had no connection in time;
                # the demo counts this text.
                response.failure("pool timeout")
            elif response.status_code != 200:
                response.failure(f"status {response.status_code}")

"""The customers of the demo: locust runs as many of them as it is told, of the class that it is told.

They never pause, so that what limits them is the shop and nothing else.
"""

from __future__ import annotations

import os
import random

from locust import FastHttpUser, task

ORDERS = int(os.environ.get("SHOP_ORDERS", "500"))
STALLS = ("anvil", "bobbin", "candle", "dynamo")


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


class StallKeeper(FastHttpUser):
    """Looks at the offers of one stall, and now and then at a page that is nobody's."""

    @task(5)
    def schema(self) -> None:
        stall = random.choice(STALLS)
        self.look(f"/schemas/{stall}/", [stall])

    @task(5)
    def policy(self) -> None:
        stall = random.choice(STALLS)
        self.look(f"/stalls/{stall}/", [stall])

    @task(2)
    def nobody(self) -> None:
        self.look("/stalls/", [])

    def look(self, path: str, owners: list[str]) -> None:
        """Ask for a page, and compare whose data it has read with whose it should have."""
        with self.client.get(path, name="offers", catch_response=True) as response:
            if response.status_code == 503:
                response.failure("pool timeout")
            elif response.status_code != 200:
                response.failure(f"status {response.status_code}")
            else:
                answer = response.json()
                if any(set(answer[part]) - set(owners) for part in ("before", "after")):
                    response.failure("another tenant's data")
                elif any(answer[part] != owners for part in ("before", "after")):
                    response.failure("no data")

"""A partner's API, which takes its time."""

import os
from urllib.request import urlopen

import httpx

URL = os.environ.get("CARRIER_URL", "http://127.0.0.1:9000")

client = httpx.AsyncClient(timeout=30)


def track(number):
    with urlopen(f"{URL}/{number}", timeout=30) as answer:
        return answer.read().decode()


async def atrack(number):
    answer = await client.get(f"{URL}/{number}")
    return answer.text

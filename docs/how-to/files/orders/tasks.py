from procrastinate.contrib.django import app

from conn_hygiene import closing_connections, release_between_queries
from orders import services


@app.task
@closing_connections
@release_between_queries
def track(pk):
    services.track(pk)


@app.task
@closing_connections
@release_between_queries
async def atrack(pk):
    await services.atrack(pk)

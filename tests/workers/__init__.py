"""The toolkit in servers and task queues, each of them the real thing and started as its users start it."""

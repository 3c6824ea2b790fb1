"""The site as an application whose jobs run in task queues."""

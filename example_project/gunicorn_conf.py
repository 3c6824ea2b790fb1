"""How gunicorn serves the shop; the demo adds the address and the threads."""

wsgi_app = "example_project.wsgi"
worker_class = "gthread"
workers = 1
threads = 32
graceful_timeout = 2

# Newer versions open a socket in the home directory, for `gunicornc`. Two
# demos at a time would share it. Older versions ignore the line.
control_socket_disable = True

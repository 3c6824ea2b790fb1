"""The shop, as a project that queries while it is loaded: for a flag, a price list, the site's name.

``gunicorn --preload example_project.preloaded``: the master has queried before it forks, and its workers inherit what
it opened.
"""

from django.apps import apps

from example_project.wsgi import application

print(f"Loaded, with {apps.get_model('shop', 'Order').objects.count()} orders.", flush=True)

__all__ = ["application"]

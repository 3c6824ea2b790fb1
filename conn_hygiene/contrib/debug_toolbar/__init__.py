"""A panel of django-debug-toolbar: what each request does with its connections; see :mod:`.panels`."""

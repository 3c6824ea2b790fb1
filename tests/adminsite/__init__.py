"""A site with Django's admin and the page of connections, for the tests and for the docs' pictures."""

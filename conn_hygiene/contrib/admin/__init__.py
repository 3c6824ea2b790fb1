"""A page of Django's admin: what holds connections now, on this host and on the servers, and a way to end a session."""

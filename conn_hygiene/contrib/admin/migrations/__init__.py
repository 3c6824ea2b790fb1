"""The permissions, for which Django wants a model; there is no table."""

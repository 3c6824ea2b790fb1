"""A small shop that shows what conn_hygiene does, and the helpers that start PostgreSQL for it."""

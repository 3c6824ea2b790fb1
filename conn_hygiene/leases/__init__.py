"""One wrapper's claim on one connection, from its checkout to its return."""

POOL_SIZE = 4
# Seconds that a request waits for a connection, and that a visitor waits for an answer.
POOL_TIMEOUT = 3
PATIENCE = 6
THREADS = 16

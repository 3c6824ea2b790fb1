"""What one session on the server carries: what it is opened with, and what its owner's statements leave in it."""

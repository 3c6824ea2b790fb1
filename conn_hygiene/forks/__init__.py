"""What a forked process inherits: it is dropped without a word to the server, and never used."""

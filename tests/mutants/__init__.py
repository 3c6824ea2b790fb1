"""Break the core line by line, in a copy, and see for each line that a test falls."""

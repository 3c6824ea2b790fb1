"""What is promised of transactions: they are run again, have a limit, and end with their request."""

"""What is told to people of what happened: in logs, signals, numbers and files."""

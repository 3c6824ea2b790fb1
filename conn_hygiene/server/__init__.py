"""What the server and the settings say, and what will hurt in them."""

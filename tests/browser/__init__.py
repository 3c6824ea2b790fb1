"""What is shown in a browser, looked at in a real one: the pages, the admin, the debug toolbar's panel."""

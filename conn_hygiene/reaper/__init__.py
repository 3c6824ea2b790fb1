"""The background thread: it ends idle leases, and mends what dead threads leave behind."""

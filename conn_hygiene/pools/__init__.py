"""What differs between the kinds of pools when a connection is looked at, cleaned and given back."""

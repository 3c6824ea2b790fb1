"""One small module for each server or library that the toolkit meets."""

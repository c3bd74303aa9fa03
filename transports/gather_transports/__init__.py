"""The built-in transports, one per file."""

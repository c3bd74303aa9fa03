"""The built-in codecs, one per file."""

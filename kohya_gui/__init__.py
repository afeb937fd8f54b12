"""The web page; it never runs a model in its own process."""

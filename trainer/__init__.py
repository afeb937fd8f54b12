"""The training package: everything that touches a model, usable without the web page."""

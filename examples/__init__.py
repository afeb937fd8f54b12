"""The embedded default: a tiny model and its data set, both made by code."""

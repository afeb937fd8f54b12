"""File formats: kohya names, metadata, single-file checkpoints."""

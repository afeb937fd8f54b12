"""How the embedded model and data set are made."""

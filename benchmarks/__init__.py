"""Ratios that say whether the studio costs more than the work itself."""

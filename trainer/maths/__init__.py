"""Noise, timesteps, objectives and losses: pure tensor functions with their Options."""

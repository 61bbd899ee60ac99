"""Checkpoints, adapters and preference data on the Hub, and their cards."""

"""Pushes models, adapters and preference data to the Hub, with cards."""

"""Exact checks of drawings and answers."""

"""Preference data, made in three steps: `responses.py` samples and judges, `pairs.py` compares, `parts.py` writes files."""

"""Preference data: `prompts.py` asks, `responses.py` samples and judges, `pairs.py` makes rows, `shards.py` writes files."""

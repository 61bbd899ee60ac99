"""Preference data: prompts, sampled and judged responses, rows for trl, and files."""

"""Judges say how good answers and drawings are. `verdict.py` has what a judge takes and returns."""

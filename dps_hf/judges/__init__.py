"""Says how good answers and drawings are: `verdict.py` is what every judge takes and gives, each other file a judge."""

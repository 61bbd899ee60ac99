"""From records to trained weights: batches, adapters, resuming, curves."""

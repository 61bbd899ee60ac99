"""From records to trained weights: batches, losses, adapters, resuming, curves."""

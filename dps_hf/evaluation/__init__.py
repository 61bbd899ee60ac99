"""Figures of a model by anybody's evaluations, each with its confidence interval."""

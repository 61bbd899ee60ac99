"""The part of DPS that travels to the Hub: it imports torch and transformers only."""

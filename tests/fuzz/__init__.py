"""Random programs against a reference: see frame.py."""

"""Benchmarks: what ``minidist bench`` runs."""

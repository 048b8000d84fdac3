"""Benchmarks against other libraries. Each prints a table and writes JSON; none is a test."""

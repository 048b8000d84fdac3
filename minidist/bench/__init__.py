"""Measurements against peers. A bench prints a table and writes JSON; nothing here is a test."""

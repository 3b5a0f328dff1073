"""Runs of a paper beside its published numbers: tables, training of their weights, jobs."""

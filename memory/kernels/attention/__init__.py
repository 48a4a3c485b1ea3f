"""Attention of queries to a few slices or chunks of a long list: naive, torch and compiled. Imports `arithmetic`."""

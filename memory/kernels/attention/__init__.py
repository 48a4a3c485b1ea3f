"""Attention of queries to their own few slices of one list: windows and chunks. Imports `arithmetic`."""

"""Diagonal recurrences h = a h + b: naive, torch and compiled; FFM's decaying traces are one. Imports `arithmetic`."""

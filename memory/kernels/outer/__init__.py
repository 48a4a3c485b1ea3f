"""Outer-product recurrences S <- decay S + k v^T: naive, in torch and compiled; SHM's Hadamard form is one of them.

Of the package it imports `arithmetic` and the common ground alone.
"""

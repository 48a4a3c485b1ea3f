"""Recurrences of matrices S <- a S + k v^T, elementwise scaling included. Imports `arithmetic`.

Stable Hadamard Memory's is one.
"""

"""Outer-product recurrences S <- decay S + k v^T: naive, in torch and compiled; SHM's Hadamard form is one of them.

Imports `kernels/arithmetic` and nothing else of the package.
"""

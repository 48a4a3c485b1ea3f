"""Delta-rule recurrences S <- a S + b k (v - a S^T k)^T: what stands under a key is erased before it is written.

Imports `arithmetic`.
"""

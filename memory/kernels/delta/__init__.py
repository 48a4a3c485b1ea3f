"""The gated delta rule S <- a S + b k (v - a S^T k)^T: naive, chunked (torch) and compiled; the layer around it, whose
queries and keys turn with time.

Of the package it imports `arithmetic` and the common ground alone.
"""

"""The gated delta rule S <- a S + b k (v - a S^T k)^T: naive, chunked (torch) and compiled, and the layer around it.

Of the package it imports `arithmetic` and the common ground alone.
"""

"""The gated delta rule S <- a S + b k (v - a S^T k)^T: naive, chunked (torch) and compiled, and the layer around it.

Imports `kernels/arithmetic` and nothing else of the package.
"""

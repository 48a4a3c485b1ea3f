"""Diagonal recurrences h <- a h + b: each state decays (and rotates) by itself. Imports `arithmetic`.

Fast and Forgetful Memory's decaying traces are one.
"""

"""Runs: train and evaluate as a configuration says, and write everything to a run directory.

Imports all other folders of `agents`. Only the command line imports it, and `agents` itself for `evaluate` and `grid`.
"""

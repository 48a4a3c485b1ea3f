"""Evaluation of a trained agent: whole episodes, success by kind of answer, horizons.

Imports the ground floor of `agents`, and `memory`.
"""

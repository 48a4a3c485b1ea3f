"""Whole episodes of a trained agent, and what they show: success by kind, horizons.

Imports the ground floor of `agents`, and `envs`.
"""

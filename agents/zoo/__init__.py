"""Hyperparameter files of rl-zoo3 for its algorithm `ppo_lstm`, read as the configuration of a training.

Stands on `agents.run`, whose configuration it makes. Only the command line imports it.
"""

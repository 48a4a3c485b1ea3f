"""Searches for the hyperparameters of a training, with Optuna (the extra "tune").

Stands on `agents.sweep`, whose engines run the trials, and on `agents.run`. Only the command line imports it.
"""

"""Training: rollout, loss, update, and the file of a model.

Imports `policy`, `evaluation`, `files` and the ground floor of `agents`.
"""

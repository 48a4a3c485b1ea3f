"""A trained agent as a file that acts without this package: one step as a function of tensors.

Stands on `agents.run`. Only the face `agents` and the command line import it.
"""

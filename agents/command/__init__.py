"""How the words of a command line become a configuration.

Imports `agents.run`. Only the command line imports it.
"""

"""A run: from a configuration to a directory that holds everything about it.

Imports every other folder of `agents`; only the command line imports it.
"""

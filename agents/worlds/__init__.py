"""From names on the command line to vector environments: wrappers by name, rows in this process or in others.

Imports the ground floor of `agents`, and `envs`.
"""

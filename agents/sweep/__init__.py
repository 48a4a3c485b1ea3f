"""Sweeps: many trainings of one suite, over processes or a Ray cluster, and the report on them.

Stands on `agents.run`: one run of a sweep is one training. Only the command line imports it.
"""

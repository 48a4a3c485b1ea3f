"""POPGym's worlds in the batched core (arXiv 2303.01859): the rules are those of the package `popgym` 1.0.7.

The package is not imported. `tests/envs/popgym` holds each world equal to it, step by step. Where the package has a
fault, the world has it too, and its docstring says so.
"""

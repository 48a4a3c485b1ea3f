"""What memories are made of and that is no memory: allocation, strategy values, chunk plans, windows.

Imports `memory.kernels`, never a memory.
"""

"""Parts of memories: stacks of layers, slot allocation, strategy values, chunk plans, attention by place, windows.

Imports `memory.kernels`, but no memory.
"""

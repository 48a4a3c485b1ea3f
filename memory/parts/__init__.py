"""Parts of memories: slot allocation, strategy values, chunk plans, attention by place, attention windows.

Imports `memory.kernels`, but no memory.
"""

"""What memories are made of: slot allocation, values of strategies, plans of chunks, windows, reads by place.

Imports `memory.kernels`, never a memory.
"""

"""Products, vectors, linear maps, elementwise functions, compiling, threads, dispatch. Knows no recurrence.

Imports nothing of the package; `agents` may import this folder of the kernels alone.
"""

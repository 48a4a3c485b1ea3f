"""Products, vectors, elementwise functions, addresses, compiling, threads, dispatch. Knows no recurrence.

Imports nothing of the package but its common ground. It is the only folder of the kernels that `agents` may import.
"""

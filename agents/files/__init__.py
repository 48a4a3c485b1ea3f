"""Files that run no code. Imports nothing of `agents` but the ground floor (`tree`, `refusals`).

`values` turns a tree of plain values into JSON and tensors; `archive` writes them as a ZIP.
"""

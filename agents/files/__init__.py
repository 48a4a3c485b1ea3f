"""Files that run no code. Imports nothing of `agents` but the ground floor.

`values` turns a tree of plain values into JSON and tensors, `classes` is the table of classes that a file may name, and
`archive` writes the tree as a ZIP. `statistics` and `written_by` are parts of every model's tree.
"""

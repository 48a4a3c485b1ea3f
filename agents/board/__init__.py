"""What TensorBoard shows beside scalars: the first page, histograms, pictures, texts and runs side by side.

May import the ground floor, memory's contract, and the rooms below learn and off_policy; run imports this one.
"""

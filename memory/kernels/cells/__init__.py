"""Cells with a matrix product of the state at every step, LSTM, GRU and RNN: naive, torch and compiled.

Imports `arithmetic`.
"""

"""Gated recurrent cells with a product of the state at every step: LSTM, GRU, RNN. Imports `arithmetic`."""

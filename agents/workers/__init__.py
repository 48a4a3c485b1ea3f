"""Processes that train one agent together, as one of them sees the others. It may import the ground floor only."""

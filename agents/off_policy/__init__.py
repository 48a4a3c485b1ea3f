"""Learning from a replay of sequences: the replay, the algorithms `MemoryDQN` and `MemorySAC`, and their policies.

Floors, ground first: priorities, targets, exploration, policies | replay | losses | algorithm | dqn, sac.
"""

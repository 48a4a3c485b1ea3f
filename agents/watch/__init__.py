"""Watch a trained agent: play its episodes as pictures, and look inside its memory.

May import run, evaluation, policy, files, and the ground floor; `config` imports neither torch nor gymnasium.
"""

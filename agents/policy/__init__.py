"""What acts: observation -> features -> encoder -> memory -> heads.

Imports the ground floor of `agents`, and `memory`.
"""

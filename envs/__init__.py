"""What an agent must remember: batched worlds with three faces.

Importing this package registers its ids with gymnasium. It knows nothing of torch, agents or SB3; `make_vec` imports
SB3 when it is called.
"""

from envs.registration import Entry, describe, entry, family, ids, make_vec, register

__all__ = ["Entry", "describe", "entry", "family", "ids", "make_vec", "register"]

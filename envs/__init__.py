"""Environments that test memory: one batched world per task, with interfaces for gymnasium and SB3.

Importing this package registers its ids with gymnasium. It imports neither torch nor agents nor SB3. `make_vec`
imports SB3 when it is called.
"""

from palimpsest.envs.registration import Entry, describe, entry, family, ids, make_vec, register

__all__ = ["Entry", "describe", "entry", "family", "ids", "make_vec", "register"]

if __name__ == "envs":
    # imported under its short name, from a clone's root
    from palimpsest.short_names import hand_over

    hand_over(__name__)

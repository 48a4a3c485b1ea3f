"""Raise the error that stopped a training again, from the dump of that training (`agents.learn.dump`).

`python -m palimpsest.agents.learn.failure FILE` raises it from the command line.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch

from palimpsest.agents.files.archive import CorruptFile, NamedOnly
from palimpsest.agents.learn.buffers import Minibatch
from palimpsest.agents.learn.dump import FILE
from palimpsest.agents.learn.loss import LossWeights, ppo_loss
from palimpsest.agents.learn.model_file import load_model
from palimpsest.agents.learn.numerics import (
    NotFinite,
    check_actions,
    check_observation,
    check_parameters,
    check_rewards,
    explained_step,
    in_parameters,
    in_rollout,
    policy_input,
    raise_for_rollout,
    raise_for_update,
)
from palimpsest.agents.learn.ppo import MemoryPPO
from palimpsest.agents.tree import tree_map


def reproduce(
    file: str | Path, device: torch.device | str = "cpu", custom_objects: Mapping[str, Any] | None = None
) -> NoReturn:
    """Raise the error that stopped a training again, from its dump.

    The failed check runs again on the model and the numbers in the dump. Nothing is trained.

    Args:
        file: the dump, `FILE` in a run directory.
        device: where to compute. The training's device and number of threads give the same numbers again.
        custom_objects: as for `MemoryPPO.load`.

    Raises:
        NotFinite: the error of the training.
        CorruptFile: the file is torn, altered, or not one of ours.
        NamedOnly: `custom_objects` lacks a class or function of which the file holds only the name.
        ValueError: the file is not a dump, or the failed check passes here.
    """
    model, extra = load_model(MemoryPPO, file, None, device, custom_objects, force_reset=False)
    failure = extra["failure"]
    if failure is None:
        raise ValueError(f"{str(file)!r} is a model, not the dump of a failure; give a file named {FILE}")
    if not isinstance(failure, dict) or not isinstance(evidence := failure.get("evidence"), dict):
        raise CorruptFile(f"{str(file)!r} describes no failure")
    again = {
        "observation": lambda: check_observation(**evidence),
        "rewards": lambda: check_rewards(**evidence),
        "parameters": lambda: check_parameters(model.policy, **evidence),
        "step": lambda: _act_again(model),
        "rollout": lambda: _scan_again(model, evidence),
        "update": lambda: _update_again(model, evidence),
    }
    if failure.get("check") not in again:
        raise CorruptFile(f"{str(file)!r} names the check {failure.get('check')!r}; known: {', '.join(again)}")
    again[failure["check"]]()
    raise ValueError(f"{str(file)!r}: the check passes here; the error was: {failure.get('message')}")


def _act_again(model: MemoryPPO) -> None:
    allowed = model._last_action_masks
    masks = {} if allowed is None else {"action_masks": torch.as_tensor(allowed, device=model.device)}
    with torch.no_grad(), explained_step(model):
        actions, *_ = model.policy(**policy_input(model), **masks)
    check_actions(model, actions.cpu().numpy())


def _columns(model: MemoryPPO, fields: dict[str, Any]) -> Minibatch:
    """A minibatch from the fields in a file. Its state becomes a NamedTuple again."""
    fresh = model.policy.initial_state(fields["actions"].shape[1])
    return Minibatch(**{**fields, "state": tree_map(lambda _, saved: saved, fresh, fields["state"])})


def _scan_again(model: MemoryPPO, evidence: dict[str, Any]) -> None:
    rollout, first_step = _columns(model, evidence["rollout"]), evidence["first_step"]
    if in_parameters(model.policy) or in_rollout(rollout, first_step):
        raise_for_rollout(model.policy, rollout, first_step)


def _update_again(model: MemoryPPO, evidence: dict[str, Any]) -> None:
    batch, rollout = (_columns(model, evidence[name]) for name in ("batch", "rollout"))
    weights = LossWeights(**evidence["weights"])
    model.policy.optimizer.zero_grad()
    loss, record = ppo_loss(model.policy, batch, weights)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.policy.parameters(), model.max_grad_norm)
    if not torch.isfinite(record["approx_kl"] + loss.detach() + norm):
        raise_for_update(model.policy, batch, weights, rollout, evidence["first_step"])


def main(argv: list[str] | None = None) -> int:
    """`python -m palimpsest.agents.learn.failure FILE`: print the error; exit code 1 if it is raised, 2 if not."""
    words = sys.argv[1:] if argv is None else argv
    if len(words) != 1 or words[0] in ("-h", "--help"):
        print(
            f"usage: python -m palimpsest.agents.learn.failure FILE\n\nRaise the error again that wrote FILE ({FILE})."
        )
        return 0 if words[:1] in (["-h"], ["--help"]) else 2
    try:
        reproduce(words[0])
    except NotFinite as error:
        print(error, file=sys.stderr)
        return 1
    except NamedOnly as error:
        failure = error.tree.get("failure") if isinstance(error.tree, dict) else None
        if isinstance(failure, dict):
            print(f"the error was: {failure.get('message')}", file=sys.stderr)
        print(f"{error}; agents.learn.failure.reproduce has this argument too", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

"""What holds for every registered environment, on all faces. New families are tested by being registered."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from faces import (
    FAMILIES,
    IDS,
    ROWS,
    TINIES,
    any_actions,
    at,
    make,
    make_rows,
    nothing,
    play,
    same,
    unlawful,
    until_ends,
)
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from legality import LEGAL, broken
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from palimpsest import envs

pytestmark = [pytest.mark.usefixtures("tiny_family"), pytest.mark.filterwarnings("ignore:.*symmetric and normalized")]


@pytest.mark.filterwarnings("ignore:.*space m.* value is -?infinity")
@pytest.mark.parametrize("id", IDS)
def test_gymnasium_accepts_it(id):
    check_env(make(id))


@pytest.mark.filterwarnings("ignore:.*minimal resolution", "ignore:.*unconventional shape")
@pytest.mark.parametrize("id", IDS)
def test_sb3_accepts_it(id):
    sb3_check_env(make(id))


@pytest.mark.parametrize("id", IDS)
def test_rows_equal_singles_on_every_face(id):
    vector, venv = make_rows(id), envs.make_vec(id, ROWS, seed=7)
    singles = [make(id) for _ in range(ROWS)]
    first, _ = vector.reset(seed=7)
    assert same(first, venv.reset())
    for i, single in enumerate(singles):
        assert same(at(first, i), single.reset(seed=7 + i)[0])
    returns, lengths = np.zeros(ROWS), np.zeros(ROWS, int)
    for actions, (obs, reward, terminated, truncated, infos) in until_ends(vector):
        sb3_obs, sb3_reward, sb3_done, sb3_infos = venv.step(actions)
        assert same(obs, sb3_obs)
        assert same(reward.astype(np.float32), sb3_reward)
        assert same(terminated | truncated, sb3_done)
        assert not (terminated & truncated).any()
        returns += reward
        lengths += 1
        for i, single in enumerate(singles):
            one = single.step(actions[i])
            assert (one[1], one[2], one[3]) == (reward[i], terminated[i], truncated[i])
            if not (one[2] or one[3]):
                assert same(one[0], at(obs, i))
                assert one[4] == sb3_infos[i] == {}
                continue
            assert same(one[0], infos["final_obs"][i])
            final = {name: values[i].item() for name, values in infos["final_info"].items() if name[0] != "_"}
            assert one[4] == final
            assert final.keys() == {"success", "is_success", *single.reported}
            told = dict(sb3_infos[i])
            assert same(told.pop("terminal_observation"), one[0])
            assert told.pop("episode").items() >= {"r": round(returns[i], 6), "l": lengths[i]}.items()
            won = one[4]["success"]
            assert told == {"TimeLimit.truncated": one[3], **final}
            assert told["is_success"] == won
            returns[i] = lengths[i] = 0
            assert same(at(obs, i), single.reset()[0])


@pytest.mark.parametrize("id", IDS)
def test_vector_equals_gymnasiums_own(id):
    ours = make_rows(id)
    theirs = SyncVectorEnv([lambda: make(id)] * ROWS, autoreset_mode=AutoresetMode.SAME_STEP)
    assert same(ours.reset(seed=3), theirs.reset(seed=3))
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    for actions, (*results, infos) in until_ends(ours):
        *their_results, their_infos = theirs.step(actions)
        assert same(results, their_results)
        assert same(dict(infos), their_infos)


@pytest.mark.parametrize("id", IDS)
def test_replay_from_hidden_state(id):
    vector = make_rows(id)
    vector.reset(seed=5)
    for _ in play(vector, 20, seed=2):
        pass
    hidden = vector.hidden_state()
    before = {name: array.copy() for name, array in hidden.items()}
    script = [(actions, result) for actions, result in until_ends(vector)]
    assert all(same(hidden[name], before[name]) for name in before)
    for other in (vector, make_rows(id)):
        obs, _ = other.reset(options={"hidden_state": hidden})
        assert all(same(other.hidden_state()[name], before[name]) for name in before)
        for actions, (*results, infos) in script:
            *again, infos_again = other.step(actions)
            assert same(results, again)
            assert same(dict(infos), dict(infos_again))
    for i in range(ROWS):
        single = make(id)
        start, _ = single.reset(options={"hidden_state": {name: a[i : i + 1] for name, a in hidden.items()}})
        assert same(start, at(obs, i))
        assert same(single.step(script[0][0][i])[1], float(script[0][1][1][i]))


@pytest.mark.parametrize("id", IDS)
def test_hidden_states_that_do_not_fit_are_refused(id):
    env = make(id)
    env.reset(seed=0)
    hidden = env.hidden_state()
    with pytest.raises(ValueError, match="options may hold 'hidden_state'"):
        env.reset(options={"hiden_state": hidden})
    with pytest.raises(ValueError, match="hidden_state must be what"):
        env.reset(options={"hidden_state": {"rng": hidden["rng"]}})
    for name in hidden:
        with pytest.raises(ValueError, match=rf"hidden_state\['{name}'\] must be"):
            env.reset(options={"hidden_state": hidden | {name: np.repeat(hidden[name], 2, 0)}})


@pytest.mark.parametrize("id", IDS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**70), length=st.integers(1, 60), data=st.data())
def test_same_seed_same_episode(id, seed, length, data):
    a, b = make(id), make(id)
    assert same(a.reset(seed=seed), b.reset(seed=seed))
    space, shape = a.action_space, a.action_space.shape
    choices = np.full(shape, 99) if isinstance(space, spaces.Box) else np.ravel(space.nvec if shape else space.n)
    for _ in range(length):
        action = [data.draw(st.integers(0, int(n) - 1)) for n in choices]
        one, two = a.step(action[0] if shape == () else action), b.step(np.array(action, np.int32).reshape(shape))
        assert same(one, two)
        if one[2] or one[3]:
            assert same(a.reset(), b.reset())


@pytest.mark.parametrize("id", IDS)
def test_seeds_differ_and_unseeded_rows_differ(id):
    seeded, unseeded = make_rows(id, 64), make_rows(id, 64)
    seeded.reset(seed=0)
    unseeded.reset()
    for vector in (seeded, unseeded):
        assert len(np.unique(vector.hidden_state()["rng"])) == 64
    assert not np.isin(seeded.hidden_state()["rng"], unseeded.hidden_state()["rng"]).any()


@pytest.mark.parametrize("id", IDS)
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["copy", "pickle"])
def test_clones_go_on_alike_and_apart(id, clone):
    vector, venv, single = make_rows(id), envs.make_vec(id, ROWS, seed=0), make(id)
    vector.reset(seed=0)
    venv.reset()
    single.reset(seed=0)
    for actions, _ in play(vector, 7, seed=3):
        venv.step(actions)
    others = clone(vector), clone(venv), clone(single)
    for actions, (*results, infos) in until_ends(vector, 3):
        *again, infos_again = others[0].step(actions)
        assert same(results, again)
        assert same(dict(infos), dict(infos_again))
        assert same(venv.step(actions)[:3], others[1].step(actions)[:3])
    assert same(single.step(nothing(single)), others[2].step(nothing(single)))


@pytest.mark.parametrize("id", IDS)
def test_a_million_random_steps_stay_legal_and_in_the_space(id):
    B = 1024
    vector = make_rows(id, B)
    obs, _ = vector.reset(seed=11)
    rng = np.random.default_rng(4)
    for _ in range(1_000_000 // B + 1):
        assert_in_space(obs, vector.single_observation_space)
        if rng.random() < 0.25:  # at moments that no episode's length has in common
            assert broken(vector.world) == []
        obs, reward, *_ = vector.step(any_actions(vector, rng))
        assert np.isfinite(reward).all()
    for _, (obs, *_) in play(vector, 60, seed=5):
        assert_in_space(obs, vector.single_observation_space)
        assert broken(vector.world) == []


def assert_in_space(obs: Any, space: spaces.Space) -> None:
    """What `space.contains` says, of all rows at once."""
    parts = space.spaces if isinstance(space, spaces.Dict) else {None: space}
    for key, part in parts.items():
        array = obs if key is None else obs[key]
        low, high = (part.low, part.high) if isinstance(part, spaces.Box) else (part.start, part.start + part.n - 1)
        assert array.dtype == part.dtype
        assert array.shape[1:] == (part.shape or ())
        assert (array >= low).all()
        assert (array <= high).all()


@pytest.mark.parametrize("id", FAMILIES.values())
def test_every_invariant_notices_states_that_break_it(id):
    """States of play with some fields overwritten: each invariant fails in one of them, and none before."""
    vector, rng = make_rows(id, 64), np.random.default_rng(0)
    vector.reset(seed=3)
    world = vector.world
    noticed = set()
    for _ in play(vector, 60, seed=0):
        kept = world.state
        changed = {name: array.copy() for name, array in kept._asdict().items() if name != "rng"}
        for array in changed.values():
            wrong = rng.choice([-3, 0, 1, 2, 3, 4, 5, 7, 22, 99], array.shape).astype(array.dtype)
            rows = (rng.random(len(array)) < 0.3).reshape(-1, *[1] * (array.ndim - 1))
            np.copyto(array, wrong, where=rows & (rng.random(array.shape) < rng.choice([0.1, 1])))
        assert broken(world) == []
        world.state = kept._replace(**changed)
        noticed |= {message.partition(" in row ")[0] for message in broken(world)}
        world.state = kept
    assert noticed == {"steps", *LEGAL[type(world).__name__](world)}


@pytest.mark.parametrize("id", IDS)
def test_the_breakdown_is_the_same_on_every_face_and_tells_of_answers(id):
    vector, venv = make_rows(id), envs.make_vec(id, ROWS, seed=7)
    singles = [make(id) for _ in range(ROWS)]
    vector.reset(seed=7)
    venv.reset()
    for i, single in enumerate(singles):
        single.reset(seed=7 + i)
    names = vector.breakdown().keys()
    answered = dict.fromkeys(names, 0)
    for _ in range(80):
        due = vector.breakdown()
        assert same(due, venv.breakdown())
        for i, single in enumerate(singles):
            told = single.breakdown()
            assert told.keys() == names
            assert all(same(told[name], due[name][i : i + 1]) for name in names)
        actions = vector.expert_action()
        _, rewards, *_ = vector.step(actions)
        venv.step(actions)
        for i, single in enumerate(singles):
            *_, terminated, truncated, _ = single.step(actions[i])
            if terminated or truncated:
                single.reset()
        for name, kinds in due.items():
            assert kinds.dtype == np.int64
            assert (kinds >= -1).all()
            assert (rewards[kinds >= 0] > 0).all()
            answered[name] += (kinds >= 0).sum()
    assert all(answered.values())


@pytest.mark.parametrize("id", IDS)
def test_the_expert_wins(id):
    vector = make_rows(id, 32)
    vector.reset(seed=0)
    won: list[bool] = []
    while len(won) < 200:
        *_, infos = vector.step(vector.expert_action())
        if infos:
            won += infos["final_info"]["success"][infos["_final_info"]].tolist()
    assert np.mean(won) >= vector.world.expert_success


@pytest.mark.parametrize("id", IDS)
def test_illegal_actions_are_refused_and_move_nothing(id):
    vector, venv, single = make_rows(id, 3), envs.make_vec(id, 3, seed=0), make(id)
    vector.reset(seed=0)
    venv.reset()
    single.reset(seed=0)
    before, before_single = vector.hidden_state(), single.hidden_state()
    out_of_range, unfit, wrong = unlawful(single.action_space)
    kind = type(single.action_space)
    allowed = {
        spaces.Discrete: "actions must be integers, 0 to ",
        spaces.MultiDiscrete: r"actions must be \d+ integers?, from 0 to ",
        spaces.Box: r"actions must be \d+ finite numbers?; got ",
    }[kind]
    for face in (vector, venv):
        for bad in out_of_range:
            with pytest.raises(ValueError, match=f"{allowed}.*in row {np.argmax((bad != 0).reshape(3, -1).any(1))}"):
                face.step(bad)
        for bad in unfit:
            with pytest.raises(ValueError, match=r"actions must be (one|\d+) (integers?|numbers?) per row, \[3"):
                face.step(bad)
    for bad in wrong:
        with pytest.raises(ValueError, match=allowed):
            single.step(bad)
    assert same(single.hidden_state(), before_single)
    for world in (vector, venv.world):
        assert all(same(array, before[name]) for name, array in world.hidden_state().items())


@pytest.mark.parametrize("id", TINIES)
def test_actions_of_any_type_and_layout_count_alike(id):
    def apart(actions: np.ndarray) -> np.ndarray:
        return np.repeat(actions, 2, axis=0)[::2]

    def unaligned(actions: np.ndarray) -> np.ndarray:
        return np.frombuffer(b"." + actions.tobytes(), actions.dtype, offset=1).reshape(actions.shape)

    whole = make(id).action_space.dtype.kind == "i"
    types = [
        lambda a, t=t: a.astype(t) for t in ((np.int8, np.uint64, ">i8", ">u2") if whole else ("f8", ">f4", ">f8"))
    ]
    layouts = [*types, list, apart, unaligned, lambda a: apart(a.astype(np.int32 if whole else np.float64))]
    layouts += [np.asfortranarray] if make(id).action_space.shape else []
    faces = [face for _ in range(len(layouts) + 1) for face in (make_rows(id), envs.make_vec(id, ROWS, seed=3))]
    for face in faces[::2]:
        face.reset(seed=3)
    for face in faces[1::2]:
        face.reset()
    for actions, results in play(faces[0], 40, seed=6):
        given = actions.copy()
        given.flags.writeable = False
        assert same(faces[1].step(given)[0], results[0])
        for k, lay in enumerate(layouts, 1):
            assert all(same(a, b) for a, b in zip(faces[2 * k].step(lay(given))[:4], results))
            assert same(faces[2 * k + 1].step(lay(given))[0], results[0])


@pytest.mark.parametrize("id", IDS)
def test_a_step_needs_an_episode(id):
    for face in (make_rows(id, 2), envs.make_vec(id, 2)):
        with pytest.raises(ValueError, match=r"call reset\(\) first"):
            face.step(np.repeat(nothing(make(id))[None], 2, 0))
    env = make(id)
    with pytest.raises(ValueError, match=r"call reset\(\) first"):
        env.step(nothing(env))
    env.reset(seed=0)
    while True:
        *_, terminated, truncated, _ = env.step(env.expert_action())
        if terminated or truncated:
            break
    with pytest.raises(ValueError, match=r"call reset\(\) first"):
        env.step(nothing(env))
    env.reset()
    env.step(nothing(env))


@pytest.mark.parametrize("id", IDS)
def test_the_step_limit_is_exact_and_yields_to_termination(id):
    vector = make_rows(id, 64)
    vector.world.rules = vector.world.rules._replace(limit=3)
    vector.reset(seed=0)
    steps, truncations = np.zeros(64, int), 0
    for _, (_, _, terminated, truncated, _) in play(vector, 60, seed=0):
        steps += 1
        assert same(truncated, (steps == 3) & ~terminated)
        truncations += truncated.sum()
        steps[terminated | truncated] = 0
    assert truncations > 64


@pytest.mark.parametrize("id", IDS)
def test_what_was_returned_is_never_written_again(id):
    vector, venv = make_rows(id), envs.make_vec(id, ROWS, seed=2)
    kept = [vector.reset(seed=2)[0], venv.reset()]
    for actions, (*results, infos) in until_ends(vector, 3):
        kept += [*results, *([infos["final_obs"]] if infos else []), *venv.step(actions)[:3]]
        if venv.last_ends is not None:
            kept += [part for part in venv.last_ends if part is not None]
    copies = copy.deepcopy(kept)
    for actions, _ in play(vector, 20, seed=9):
        venv.step(actions)
    assert all(same(a, b) for a, b in zip(kept, copies))


@pytest.mark.parametrize("id", IDS)
def test_partial_resets_touch_only_their_rows(id):
    vector = make_rows(id)
    vector.reset(seed=0)
    for _ in play(vector, 9, seed=0):
        pass
    before = vector.hidden_state()
    mask = np.arange(ROWS) == 2
    obs, _ = vector.reset(seed=40, options={"reset_mask": mask})
    after = vector.hidden_state()
    for name, array in after.items():
        assert same(array[~mask], before[name][~mask])
    assert same(at(obs, 2), make(id).reset(seed=42)[0])
    with pytest.raises(ValueError, match="with a row that is true"):
        vector.reset(options={"reset_mask": ~mask & mask})
    with pytest.raises(ValueError, match="never been reset"):
        make_rows(id).reset(options={"reset_mask": mask})
    with pytest.raises(ValueError, match="one per row"):
        vector.reset(seed=[1, 2])

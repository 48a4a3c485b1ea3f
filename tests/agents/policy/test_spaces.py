"""Every space that gymnasium has for numbers trains and acts, and what a policy reads is the observation."""

import io

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from palimpsest.agents import MemoryPPO
from palimpsest.agents.policy.extractors import DictExtractor
from palimpsest.agents.policy.spaces import check_action_space, flat_action_space, flattened, preprocess

FLAT = spaces.Box(-1, 1, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (7, 7, 3), np.uint8)

ACTIONS = {
    "a matrix": spaces.Box(-1, 1, (2, 3), np.float32),
    "one number": spaces.Box(-1, 1, (), np.float32),
    "a line": spaces.Box(-1, 1, (2,), np.float32),
    "choices in a matrix": spaces.MultiDiscrete(np.array([[2, 3], [4, 2]])),
    "choices in a line": spaces.MultiDiscrete([2, 3]),
    "switches in a matrix": spaces.MultiBinary([2, 3]),
    "switches in a line": spaces.MultiBinary(3),
    "one choice": spaces.Discrete(3),
}

OBSERVATIONS = {
    "one number": spaces.Box(-1, 1, (), np.float32),
    "a matrix": spaces.Box(-1, 1, (2, 3), np.float32),
    "a choice from -1": spaces.Discrete(3, start=-1),
    "choices from 5": spaces.MultiDiscrete([2, 3], start=[5, 5]),
    "choices in a matrix": spaces.MultiDiscrete(np.array([[2, 3], [4, 2]])),
    "switches in a matrix": spaces.MultiBinary([2, 2]),
    "keys that modules have": spaces.Dict(
        {key: spaces.Discrete(2, start=3) for key in ("forward", "training", "a.b", "")} | {"type": FLAT}
    ),
    "numbers and matrices by key": spaces.Dict(
        {"x": spaces.Box(-1, 1, (), np.float32), "y": spaces.MultiDiscrete(np.array([[2, 3]]), start=[[1, 1]])}
    ),
}


class Echo(gym.Env):
    """Four steps of samples; it refuses an action that its space does not hold."""

    def __init__(self, observation_space=FLAT, action_space=ACTIONS["one choice"]) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(np.asarray(action, self.action_space.dtype))
        self.t += 1
        return self.observation_space.sample(), 1.0, self.t == 4, False, {}


def trained(env: gym.Env, policy: str = "", **kwargs) -> MemoryPPO:
    policy = policy or ("MultiInput" if isinstance(env.observation_space, spaces.Dict) else "Mlp")
    kwargs = dict(memory="gru", memory_kwargs=dict(output_size=4), encoder_arch=[4], net_arch=[4]) | kwargs
    model = MemoryPPO(f"{policy}MemoryPolicy", env, n_steps=8, batch_size=8, n_epochs=1, policy_kwargs=kwargs, seed=0)
    return model.learn(8)


def batch_of(space: spaces.Space, size: int):
    samples = [space.sample() for _ in range(size)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in space.spaces}
    return np.stack(samples)


@pytest.mark.parametrize("name", ACTIONS)
def test_actions_have_the_shape_of_their_space(name):
    space = ACTIONS[name]
    model = trained(Echo(action_space=space))
    one, _ = model.predict(FLAT.sample())
    many, _ = model.predict(batch_of(FLAT, 5))
    assert np.shape(one) == space.shape
    assert many.shape == (5, *space.shape)
    again = MemoryPPO.load(saved(model)).predict(batch_of(FLAT, 2))[0]
    assert again.shape == (2, *space.shape)


def saved(model):
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    return file


@pytest.mark.parametrize("shape", [(2, 3), ()])
def test_the_probability_of_a_box_action_is_the_product_over_its_numbers(shape):
    space = spaces.Box(-1, 1, shape, np.float32)
    policy = trained(Echo(action_space=space)).policy
    obs, start = torch.zeros(1, 2, 3), torch.ones(1, 2, dtype=torch.bool)
    actions = torch.full((1, 2, *shape), 0.5)
    found = policy.evaluate_actions(obs, actions, policy.initial_state(2), start).log_prob
    distribution, _ = policy.get_distribution(obs[0], policy.initial_state(2))
    normal = torch.distributions.Normal(distribution.mode(), policy.log_std.exp())
    torch.testing.assert_close(found[0], normal.log_prob(torch.tensor(0.5)).sum(-1))


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_observations_train_and_are_acted_on(name):
    space = OBSERVATIONS[name]
    model = trained(Echo(space))
    assert np.shape(model.predict(space.sample())[0]) == ()
    assert model.predict(batch_of(space, 3))[0].shape == (3,)


def test_a_choice_is_counted_from_its_start():
    found = preprocess(torch.tensor([-1, 1]), spaces.Discrete(3, start=-1))
    assert found.tolist() == [[1, 0, 0], [0, 0, 1]]
    matrix = spaces.MultiDiscrete(np.array([[2, 3]]), start=np.array([[5, 7]]))
    assert preprocess(torch.tensor([[[6, 9]]]), matrix).tolist() == [[0, 1, 0, 0, 1]]
    assert flattened(matrix).shape == (5,)


def test_flat_action_spaces_hold_the_same_numbers():
    box = spaces.Box(np.array([[0, 1]], np.float32), np.array([[2, 3]], np.float32))
    assert flat_action_space(box) == spaces.Box(np.array([0, 1], np.float32), np.array([2, 3], np.float32))
    assert flat_action_space(ACTIONS["choices in a matrix"]) == spaces.MultiDiscrete([2, 3, 4, 2])
    assert flat_action_space(ACTIONS["switches in a matrix"]) == spaces.MultiBinary(6)


@pytest.mark.parametrize("policy", ["Cnn", "MultiInput"])
@pytest.mark.parametrize("normalize_images", [True, False])
def test_values_of_a_small_image_are_its_categories(policy, normalize_images):
    space = IMAGE if policy == "Cnn" else spaces.Dict({"image": IMAGE})
    model = trained(Echo(space), policy, normalize_images=normalize_images)
    for value in (1, 3, 15):
        image = torch.full((1, 3, 7, 7), value, dtype=torch.uint8)
        features = model.policy.extract_features(image if policy == "Cnn" else {"image": image})
        one_hot = features[0, : 147 * 16].reshape(147, 16)
        assert (one_hot.argmax(1) == value).all()
        torch.testing.assert_close(features[0, 147 * 16 :], torch.full((147,), value / 255))


def test_images_of_floats_are_read_without_normalisation():
    space = spaces.Box(0, 1, (1, 40, 40), np.float32)
    model = trained(Echo(space), "Cnn", normalize_images=False)
    assert model.predict(batch_of(space, 2))[0].shape == (2,)
    small = spaces.Box(0, 1, (1, 4, 4), np.float32)
    features = trained(Echo(small), "Cnn", normalize_images=False).policy.extract_features(torch.rand(2, 1, 4, 4))
    assert features.shape == (2, 16)
    with pytest.raises(ValueError, match="normalize_images=False"):
        trained(Echo(space), "Cnn")


@pytest.mark.parametrize("policy", ["Mlp", "Cnn"])
def test_a_policy_of_one_array_refuses_a_dict_by_name(policy):
    with pytest.raises(ValueError, match=f"{policy}MemoryPolicy reads one array .*use MultiInputMemoryPolicy"):
        trained(Echo(OBSERVATIONS["keys that modules have"]), policy)


def test_dict_keys_do_not_name_modules():
    space = OBSERVATIONS["keys that modules have"]
    assert isinstance(space, spaces.Dict)
    extractor = DictExtractor(space)
    obs = {key: torch.as_tensor(part) for key, part in batch_of(space, 2).items()}
    assert extractor(preprocess(obs, space)).shape == (2, extractor.features_dim) == (2, 4 * 2 + 3)


@pytest.mark.parametrize("as_id", [True, False])
def test_a_minigrid_id_trains_without_its_mission(as_id):
    import minigrid  # noqa: F401  registers

    name = "MiniGrid-MemoryS7-v0"
    kwargs = dict(memory="gru", memory_kwargs=dict(output_size=4))
    model = MemoryPPO(
        "MultiInputMemoryPolicy", name if as_id else gym.make(name), n_steps=8, batch_size=8, n_epochs=1,
        policy_kwargs=kwargs,
    ).learn(8)  # fmt: skip
    assert set(model.observation_space.spaces) == {"direction", "image"}


def test_whole_numbers_in_a_box_of_actions_are_refused():
    with pytest.raises(ValueError, match=r"the actions of a Box must be floats; got .*int32.*MultiDiscrete"):
        check_action_space(spaces.Box(0, 5, (2,), np.int32))
    check_action_space(spaces.Box(0, 5, (2,), np.float64))

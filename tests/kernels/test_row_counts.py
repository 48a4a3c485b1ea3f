"""Kernels of acting, for every number of rows: their products take rows by whole vectors, and more at once than one."""

import pytest
import torch
from conftest import tolerance
from gymnasium import spaces
from torch.testing import assert_close

from palimpsest.agents.policy.policies import MlpMemoryPolicy
from palimpsest.memory import make
from palimpsest.memory.kernels import torch_only

COUNTS = [*range(1, 131), 200]

each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


@each_dtype
@pytest.mark.parametrize("name", ["lstm", "gru", "rnn", "ffm", "rewrite"])
def test_steps(name, dtype):
    memory = make(name, 5, output_size=11).to(dtype)
    x, state = torch.randn(COUNTS[-1], 5, dtype=dtype), memory.initial_state(COUNTS[-1])
    with torch.no_grad():
        with torch_only():
            state = memory.step(x, state)[1]
            expected, after = memory.step(x, state)
        for count in COUNTS:
            y, found = memory.step(x[:count], type(state)(*(part[:count] for part in state)))
            for got, want in zip((y, *found), (expected, *after)):
                assert_close(got, want[:count], **tolerance(dtype))


@pytest.mark.parametrize("share_memory", [True, False])
def test_heads(share_memory):
    policy = MlpMemoryPolicy(
        spaces.Box(-1, 1, (3,)),
        spaces.Discrete(5),
        lambda _: 1e-3,
        memory="gru",
        memory_kwargs={"output_size": 9},
        share_memory=share_memory,
        encoder_arch=(7,),
        net_arch={"pi": [20], "vf": [6, 30]},
    )
    obs = torch.randn(COUNTS[-1], 3)
    for count in COUNTS:
        state = policy.initial_state(count)
        with torch.no_grad():
            actions, values, log_prob, _ = policy(obs[:count], state)
            with torch_only():
                distribution, _ = policy.get_distribution(obs[:count], state)
                assert_close(log_prob, distribution.log_prob(actions), rtol=1e-4, atol=1e-5)
                assert_close(values, policy.predict_values(obs[:count], state), rtol=1e-4, atol=1e-5)

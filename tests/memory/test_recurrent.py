"""What LSTM and GRU remember with before they have learned anything."""

import pytest
import torch

from palimpsest import memory


@pytest.mark.parametrize("name", ["lstm", "gru"])
@pytest.mark.parametrize("layers", [1, 2])
def test_time_constants_at_the_start(name, layers):
    made = memory.make(name, 3, output_size=400, num_layers=layers, horizon=100)
    for layer in range(layers):
        _, _, bias_ih, bias_hh = made.layer_weights(layer)
        keep = torch.sigmoid((bias_ih + bias_hh)[400:800])
        steps = 1 / (1 - keep)
        assert torch.allclose(steps[200:], torch.full((200,), 2.0))
        slow = steps[:200].log()
        assert slow.min() >= torch.tensor(2.0).log() - 1e-4
        assert slow.max() <= torch.tensor(100.0).log() + 1e-4
        # log-uniform: mean and standard deviation of log(steps) are those of a uniform number, within 4 standard errors
        width = torch.log(torch.tensor(50.0))
        assert abs(slow.mean() - (torch.tensor(2.0).log() + width / 2)) < 4 * width / (12 * 200) ** 0.5
        assert abs(slow.std() - width / 12**0.5) < 0.1 * width


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_a_horizon_of_two_steps_is_torchs_start(name):
    made = memory.make(name, 3, output_size=8, horizon=2)
    _, _, bias_ih, bias_hh = made.layer_weights(0)
    assert (bias_ih + bias_hh)[8:16].abs().max() < 1e-6

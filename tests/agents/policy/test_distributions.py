"""Our distributions over actions are SB3's in law: its classes are the slow twins here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common import distributions as sb3
from torch.overrides import TorchFunctionMode

from palimpsest.agents.policy.distributions import (
    Categorical,
    Undrawable,
    draw,
    invert,
    invert_into,
    make_distribution,
    restricted,
)

LARGEST = 1 - 2.0**-53
"""The largest number that a float64 uniform draw can be."""

SPACES = [
    spaces.Discrete(5),
    spaces.MultiDiscrete([2, 4, 3]),
    spaces.MultiBinary(3),
    spaces.Box(-1, 1, (3,)),
]


def parameters(space: spaces.Space, rows: int, seed: int, dtype=torch.float64) -> tuple[torch.Tensor, ...]:
    """What the two distributions are made of: logits, or means and logarithms of standard deviations."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"Discrete": 5, "MultiDiscrete": 9, "MultiBinary": 3, "Box": 3}
    size = sizes[type(space).__name__]
    first = 2 * torch.randn(rows, size, generator=generator, dtype=dtype)
    second = torch.randn(size, generator=generator, dtype=dtype)
    return (first, second) if isinstance(space, spaces.Box) else (first,)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
def test_log_prob_entropy_and_mode_are_sb3s_with_their_gradients(space):
    def values(made):
        given = tuple(p.clone().requires_grad_() for p in parameters(space, 7, 0))
        distribution = made.proba_distribution(*given)
        log_prob, entropy = distribution.log_prob(actions), distribution.entropy()
        assert log_prob.shape == entropy.shape == (7,)
        (log_prob.sum() + 2 * entropy.square().sum()).backward()
        return log_prob, entropy, distribution.mode(), *(p.grad for p in given)

    theirs = sb3.make_proba_distribution(space)
    actions = theirs.proba_distribution(*parameters(space, 7, 0)).sample()
    for got, want in zip(values(make_distribution(space)), values(theirs), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
def test_samples_follow_the_probabilities_and_torchs_seed(space):
    N = 20_000
    given = tuple(p.expand(N, -1) if p.ndim == 2 else p for p in parameters(space, 1, 1, torch.float32))
    ours, theirs = make_distribution(space), sb3.make_proba_distribution(space)

    def sampled(made):
        torch.manual_seed(3)
        return made.proba_distribution(*given).sample().double().reshape(N, -1)

    got, want = sampled(ours), sampled(theirs)
    for moment in (1, 2, 3):
        one, other = got**moment, want**moment
        error = (one.var(0) / N + other.var(0) / N).sqrt()
        assert ((one.mean(0) - other.mean(0)).abs() < 5 * error + 1e-12).all()
    assert torch.equal(got, sampled(ours))
    actions, log_prob = draw(ours.proba_distribution(*given), deterministic=False)
    torch.testing.assert_close(log_prob, theirs.proba_distribution(*given).log_prob(actions), rtol=0, atol=2e-6)
    actions, log_prob = draw(ours, deterministic=True)
    torch.testing.assert_close(actions, theirs.mode())
    torch.testing.assert_close(log_prob, theirs.log_prob(actions), rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 3, 50])
def test_the_compiled_draw_is_the_inverse_distribution_function(n, dtype):
    rng = np.random.default_rng(n)
    logits = torch.as_tensor(rng.normal(scale=3, size=(300, n)), dtype=dtype)
    logits[rng.random((300, n)) < 0.3] = -torch.inf
    logits[logits.isinf().all(1), 0] = 7.0
    uniform = np.r_[0.0, LARGEST, 2.0**-53, rng.random(297)]
    actions, log_prob = np.zeros(300, np.int64), np.zeros(300, logits.numpy().dtype)
    assert invert_into(logits.numpy(), uniform, actions, log_prob) == -1

    probs = logits.double().softmax(-1).numpy()
    below = np.cumsum(probs, 1) - probs
    rows = np.arange(300)
    assert (probs[rows, actions] > 0).all()
    assert (below[rows, actions] <= uniform + 1e-12).all()
    assert (uniform <= (below + probs)[rows, actions] + 1e-12).all()
    np.testing.assert_array_equal(actions, invert(logits, torch.from_numpy(uniform)).numpy())
    np.testing.assert_allclose(log_prob, np.log(probs[rows, actions]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("uniform", [0.0, LARGEST])
@pytest.mark.parametrize("shift", [-1000.0, 0.0, 1000.0])
def test_what_cannot_be_chosen_never_is(uniform, shift):
    logits = torch.tensor([[-torch.inf, 0.0, -800.0, 0.0, -torch.inf]]) + shift
    actions, log_prob = np.zeros(1, np.int64), np.zeros(1, np.float32)
    assert invert_into(logits.numpy(), np.array([uniform]), actions, log_prob) == -1
    assert actions[0] == (1 if uniform == 0.0 else 3)
    assert invert(logits, torch.tensor([uniform], dtype=torch.float64)).item() == actions[0]
    made = Categorical(5).proba_distribution(logits.requires_grad_())
    entropy = made.entropy()
    entropy.backward()
    assert entropy.item() == pytest.approx(np.log(2))
    assert torch.isfinite(logits.grad).all()
    assert made.log_prob(torch.tensor([0])).item() == -torch.inf


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    ("bad", "found"),
    [
        ([0.0, np.nan], "that of action 1 is nan"),
        ([-np.inf, -np.inf], "all are -inf"),
        ([np.inf, 0.0], "that of action 0 is inf"),
    ],
)
def test_logits_without_a_distribution_are_refused(bad, found, grad):
    logits = torch.tensor([[0.0, 0.0], bad], requires_grad=grad)
    with pytest.raises(Undrawable, match=f"no action can be drawn from the logits of row 1: {found}"):
        Categorical(2).proba_distribution(logits).sample()


class OnMPS(TorchFunctionMode):
    """Tensors say that they are on an Apple GPU, where float64 does not exist."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func == torch.Tensor.device.__get__:
            return torch.device("mps")
        if func is torch.Tensor.to and isinstance(args[1], torch.device):
            return args[0].clone()
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "mps":
            raise TypeError("Cannot convert a MPS Tensor to float64")
        return func(*args, **kwargs)


def test_a_draw_where_there_is_no_float64():
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))

    def drawn():
        torch.manual_seed(1)
        return Categorical(4).proba_distribution(logits).sample_with_log_prob()

    with OnMPS():
        actions, log_prob = drawn()
    want, log_want = drawn()
    assert torch.equal(actions, want)
    torch.testing.assert_close(log_prob, log_want)


def test_a_draw_that_wants_a_gradient_has_one():
    logits = torch.zeros(4, 3, requires_grad=True)
    actions, log_prob = draw(Categorical(3).proba_distribution(logits), deterministic=False)
    log_prob.sum().backward()
    want = torch.nn.functional.one_hot(actions, 3) - 1 / 3
    torch.testing.assert_close(logits.grad, want)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
def test_torchs_own_distribution_is_there_for_those_who_ask(space):
    given = parameters(space, 2, 2)
    ours = make_distribution(space).proba_distribution(*given)
    theirs = sb3.make_proba_distribution(space).proba_distribution(*given)
    torch.testing.assert_close(sb3.kl_divergence(ours, ours), torch.zeros_like(sb3.kl_divergence(ours, ours)))
    for got, want in zip(np.atleast_1d(ours.distribution), np.atleast_1d(theirs.distribution), strict=True):
        assert type(got) is type(want)
        torch.testing.assert_close(got.mean.nan_to_num(), want.mean.nan_to_num())
        torch.testing.assert_close(got.entropy(), want.entropy())


CHOICES = [(spaces.Discrete(5), [5]), (spaces.MultiDiscrete([2, 4, 3]), [2, 4, 3]), (spaces.MultiBinary(3), [2] * 3)]


def masks_for(sizes: list[int], rows: int, seed: int) -> torch.Tensor:
    """[rows, sum of sizes] bool, one value or more in every choice; the last row has one value in each."""
    rng = np.random.default_rng(seed)
    parts = []
    for size in sizes:
        mask = rng.random((rows, size)) < 0.5
        mask[-1] = False
        mask[np.arange(rows), rng.integers(size, size=rows)] = True
        parts.append(mask)
    return torch.from_numpy(np.concatenate(parts, 1))


class Twin:
    """torch's Categorical for each choice, -1e8 for what is forbidden; a switch is a choice of 0 and 1."""

    def __init__(self, space, sizes, logits, masks):
        if isinstance(space, spaces.MultiBinary):
            logits = torch.stack([torch.zeros_like(logits), logits], -1).flatten(1)
        self.parts = [
            torch.distributions.Categorical(logits=part.masked_fill(~mask, -1e8))
            for part, mask in zip(logits.split(sizes, 1), masks.split(sizes, 1))
        ]

    def log_prob(self, actions):
        return sum(part.log_prob(a) for part, a in zip(self.parts, actions.reshape(len(actions), -1).long().unbind(1)))

    def entropy(self):
        return sum(part.entropy() for part in self.parts)

    def mode(self):
        return torch.stack([part.probs.argmax(-1) for part in self.parts], 1)


@pytest.mark.parametrize(("space", "sizes"), CHOICES, ids=lambda given: type(given).__name__)
def test_masked_distributions_are_torchs(space, sizes):
    rows = 40
    (logits,), masks = parameters(space, rows, 0), masks_for(sizes, rows, 1)

    def values(make):
        given = logits.clone().requires_grad_()
        made = make(given)
        log_prob, entropy = made.log_prob(actions), made.entropy()
        (log_prob.sum() + 2 * entropy.square().sum()).backward()
        return log_prob, entropy, made.mode().reshape(rows, -1).long(), given.grad

    def ours(given):
        made = make_distribution(space).proba_distribution(given)
        made.apply_masking(masks)
        return made

    torch.manual_seed(2)
    actions = ours(logits).sample()
    got, want = values(ours), values(lambda given: Twin(space, sizes, given, masks))
    for one, other in zip(got, want, strict=True):
        assert torch.isfinite(one).all()
        torch.testing.assert_close(one, other)
    assert got[1][-1] == 0
    # a switch has one logit: it is forbidden where one of its two values is
    free = masks.unflatten(1, (-1, 2)).all(-1) if isinstance(space, spaces.MultiBinary) else masks
    assert (got[3][~free] == 0).all()
    assert (got[3][free] != 0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("space", "sizes"), CHOICES, ids=lambda given: type(given).__name__)
def test_nothing_forbidden_is_drawn_and_everything_allowed_is(space, sizes, dtype):
    N = 4000
    logits = parameters(space, 1, 0, dtype)[0].sign().expand(N, -1)
    for seed in range(5):
        masks = masks_for(sizes, 2, seed)[:1].expand(N, -1)
        made = make_distribution(space).proba_distribution(logits)
        made.apply_masking(masks)
        for actions in (made.sample(), made.mode()):
            flat = actions.reshape(N, -1).long() + torch.tensor(np.cumsum([0, *sizes[:-1]]))
            assert masks.gather(1, flat).all()
        flat = made.sample().reshape(N, -1).long() + torch.tensor(np.cumsum([0, *sizes[:-1]]))
        assert set(flat.unique().tolist()) == set(masks[0].nonzero().flatten().tolist())
        assert torch.isfinite(made.log_prob(made.sample())).all()


def test_a_second_mask_forbids_more():
    made = Categorical(3).proba_distribution(torch.zeros(1, 3))
    made.apply_masking(torch.tensor([[True, True, False]]))
    made.apply_masking(torch.tensor([[False, True, True]]))
    assert made.log_probs.exp().tolist() == [[0, 1, 0]]


def test_a_distribution_without_masking_is_refused():
    theirs = sb3.CategoricalDistribution(3).proba_distribution(torch.zeros(1, 3))
    assert restricted(theirs, None) is theirs
    with pytest.raises(ValueError, match="CategoricalDistribution has none"):
        restricted(theirs, torch.ones(1, 3, dtype=torch.bool))

"""The exact mechanisms as their papers write them: quadratic, one expression each."""

import math

import torch


def mixture(weights, v, seen):
    weights = weights * seen
    return weights @ v / weights.sum(-1, keepdim=True).clamp_min(1e-6)


def leap(attention, q, k, v, seen):
    p_q, p_k = attention.leap_q(q), attention.leap_k(k)
    cosine = torch.cos(math.pi / 2 * (p_q[..., :, None] - p_k[..., None, :]))
    return mixture(q.relu() @ k.relu().mT * cosine, v, seen)


def leap_with_a_learned_length(attention, q, k, v, seen):
    def p(leap, x):
        half_way = leap.START / torch.exp(leap.proportion(x.relu()).squeeze(-1))
        n, s = torch.arange(1, x.shape[2] + 1), leap.steepness
        return n**s / (n**s + half_way**s)

    p_q, p_k = p(attention.leap_q, q), p(attention.leap_k, k)
    cosine = torch.cos(math.pi / 2 * (p_q[..., :, None] - p_k[..., None, :]))
    return mixture(q.relu() @ k.relu().mT * cosine, v, seen)


def cosformer(attention, q, k, v, seen):
    distance = torch.arange(q.shape[2])[:, None] - torch.arange(k.shape[2])
    cosine = torch.cos(math.pi / 2 * distance.double() / attention.max_length)
    return mixture(q.relu() @ k.relu().mT * cosine, v, seen)


def linear(attention, q, k, v, seen):
    def phi(x):
        return torch.where(x > 0, x + 1, x.clamp_max(0).exp())

    return mixture(phi(q) @ phi(k).mT, v, seen)


def softmax(attention, q, k, v, seen):
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~seen, -1e300)
    return scores.softmax(-1) * seen @ v


def kernelized(attention, q, k, v, seen):
    distance = (q[..., :, None, :] - k[..., None, :, :]).square().sum(-1)
    return (-distance / (2 * math.sqrt(q.shape[-1]))).exp() * seen @ v


DENSE = {
    "leap": leap,
    "leap+learned_length": leap_with_a_learned_length,
    "cosformer": cosformer,
    "linear": linear,
    "softmax": softmax,
    "kernelized": kernelized,
}
OPTIONS: dict[str, dict[str, int]] = {"leap+learned_length": {"learned_length": True}}

"""A model that tells six voices apart by mel bands."""

import torch
from torch import nn

sounds = torch.randn(64, 40, 80, generator=torch.Generator().manual_seed(0))  # yours: 40 mel bands, every 10 ms
original = []


def make_model():
    return nn.Sequential(nn.Conv1d(40, 32, 5), nn.BatchNorm1d(32), nn.ReLU(), nn.Conv1d(32, 32, 5, stride=2), nn.ReLU(),
                         nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 6))  # fmt: skip


def batches():
    return sounds.split(4)


def signal_to_noise(model):  # at most 60 dB, which the original has
    outputs = model(sounds)
    if not original:
        original.append(outputs.clone())
    noise = (outputs - original[0]).square().sum() / original[0].square().sum()
    return -10 * noise.clamp_min(1e-6).log10()

"""A model that predicts characters."""

import torch
from torch import nn

text = torch.tensor(list(b"Sphinx of black quartz, judge my vow. " * 100))  # yours: a text such as the model will meet
windows = text[: len(text) // 32 * 32].reshape(-1, 32)


class Characters(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(128, 32), nn.Linear(64, 128)
        self.rnn = nn.GRU(32, 64, batch_first=True)

    def forward(self, ids):
        return self.head(self.rnn(self.embedding(ids))[0])


def make_model():
    return Characters()


def batches():
    return windows[::2].split(4)


def minus_loss(model):  # higher is better
    ids = windows[1::2]
    return -nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

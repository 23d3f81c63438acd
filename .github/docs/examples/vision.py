"""A classifier of pictures, LeNet-300-100."""

import torch
from torch import nn

pictures = torch.rand(256, 784, generator=torch.Generator().manual_seed(0))  # yours: pictures that the model will meet
labels = []


class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(784, 300), nn.Linear(300, 100), nn.Linear(100, 10)

    def forward(self, x):
        return self.fc3(self.fc2(self.fc1(x.flatten(1)).relu()).relu())


def make_model():
    return LeNet()


def batches():
    return pictures.split(16)


def accuracy(model):
    answers = model(pictures).argmax(1)
    if not labels:  # without labels: how many answers stay. The original is asked first
        labels.append(answers)
    return (answers == labels[0]).float().mean()

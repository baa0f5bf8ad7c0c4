"""One training loop for all models: AdamW, a cosine schedule, random shifts by a pixel."""

import torch
from digits import Digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

BATCH = 64


def seed(value: int = 0) -> None:
    """Make everything that follows repeatable: one thread, deterministic kernels, a fixed seed."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(value)


def fit(net: nn.Module, train: Digits, *, epochs: int = 80, rate: float = 2e-3) -> None:
    """Train `net` in place and leave it in evaluation mode; the last weights are kept, not the best ones."""
    image, labels = torch.from_numpy(train.image), torch.from_numpy(train.labels)
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.02)
    steps = epochs * (len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
    net.train()
    for _ in range(epochs):
        order = torch.randperm(len(labels))
        for batch in order[: len(labels) // BATCH * BATCH].split(BATCH):
            optimizer.zero_grad()
            cross_entropy(net(shift(image[batch])), labels[batch], label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()
    net.eval()


def shift(image: Tensor) -> Tensor:
    """Return each image [n, 1, 8, 8] moved by -1, 0 or 1 pixel both ways, zeros moving in."""
    windows = pad(image, (1, 1, 1, 1)).unfold(2, 8, 1).unfold(3, 8, 1)
    down, right = torch.randint(3, (2, len(image)))
    return windows[torch.arange(len(image)), :, down, right]

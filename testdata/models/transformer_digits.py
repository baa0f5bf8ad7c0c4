"""A Transformer encoder over the rows of the image. Source: Vaswani et al., NIPS 2017.

Layer normalisation comes first in each half (Xiong et al., ICML 2020).
"""

import onnx
import torch
from digits import Digits
from export import export
from torch import Tensor, nn
from torch.nn.functional import gelu
from training import fit

TOKENS, WIDTH, HEADS = 8, 64, 4


class Projection(nn.Module):
    """A linear layer whose weight is stored [inputs, outputs], so that it is exported as MatMul and Add."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Attention(nn.Module):
    """Multi-head self-attention over x [batch, TOKENS, WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        self.query = Projection(WIDTH, WIDTH)
        self.key = Projection(WIDTH, WIDTH)
        self.value = Projection(WIDTH, WIDTH)
        self.out = Projection(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (heads(layer(x)) for layer in (self.query, self.key, self.value))
        weights = torch.softmax(query @ key.transpose(2, 3) * (WIDTH // HEADS) ** -0.5, -1)
        mixed = (weights @ value).transpose(1, 2)
        return self.out(mixed.reshape(x.shape[0], TOKENS, WIDTH))


def heads(x: Tensor) -> Tensor:
    """Split [batch, TOKENS, WIDTH] into [batch, HEADS, TOKENS, WIDTH / HEADS]."""
    return x.reshape(x.shape[0], TOKENS, HEADS, WIDTH // HEADS).transpose(1, 2)


class Encoder(nn.Module):
    """Attention and a two-layer perceptron, each added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.fc1 = Projection(WIDTH, 4 * WIDTH)
        self.fc2 = Projection(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(gelu(self.fc1(self.norm2(x))))


class Transformer(nn.Module):
    """Eight rows as tokens, learned positions, one encoder block, mean over tokens, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = Projection(8, WIDTH)
        self.position = nn.Parameter(0.1 * torch.randn(TOKENS, WIDTH))
        self.encoder = Encoder()
        self.norm = nn.LayerNorm(WIDTH)
        self.fc = nn.Linear(WIDTH, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image.squeeze(1)) + self.position
        return self.fc(self.norm(self.encoder(x)).mean(1))


def make(train: Digits) -> onnx.ModelProto:
    """Train and export."""
    net = Transformer()
    fit(net, train, epochs=150)
    return export(net, opset=20)

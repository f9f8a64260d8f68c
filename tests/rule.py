"""The rule of arXiv 2510.25042 in NumPy, written from its text alone: what DWMGrad is held to.

The last four arguments are not the paper's.
"""

import numpy as np


class Rule:
    """One parameter vector; see Algorithm 1. `step` takes the loss and the gradient."""

    def __init__(
        self,
        theta,
        lr=1e-3,
        momentum=0.9,
        eps=1e-8,
        window=5,
        max_window=10,
        signal="decrease",
        weight_decay=0.0,
        loss_smoothing=0.0,
        bias_correction=False,
        normalize_momentum=False,
        second_moment_window=None,
    ):
        self.theta = np.array(theta, dtype=np.float64)
        self.s, self.v = np.zeros_like(self.theta), np.zeros_like(self.theta)
        self.lr, self.momentum, self.eps, self.weight_decay = lr, momentum, eps, weight_decay
        self.window, self.max_window, self.signal = window, max_window, signal
        self.smoothing, self.second = loss_smoothing, second_moment_window
        self.corrects, self.normalizes = bias_correction, normalize_momentum
        self.last, self.weight = None, 0.0

    def step(self, loss, gradient):
        if self.last is not None and self.smoothing:
            loss = self.smoothing * self.last + (1 - self.smoothing) * loss
        if self.signal == "loss":
            beta = loss
        elif self.signal == "increase":
            beta = loss - (self.last or 0.0)
        else:
            beta = 0.0 if self.last is None else self.last - loss
        self.last = loss
        self.window = min(self.window + 1, self.max_window) if beta > 0 else max(self.window - 1, 1)
        w = self.window
        long = w if self.second is None else self.second
        self.s = self.s * (long - 1) / long + gradient**2 / long
        self.weight = self.weight * (long - 1) / long + 1 / long  # the sum of s's weights
        mean_square = self.s / self.weight if self.corrects else self.s
        mu = self.momentum * w / self.max_window
        lr = self.lr
        if self.normalizes:
            half = self.momentum / 2
            lr *= (1 - half) * np.sqrt((1 - mu**2) / (1 - half**2))
        self.v = mu * self.v + lr * gradient / (np.sqrt(mean_square) + self.eps)
        self.theta = self.theta * (1 - self.lr * self.weight_decay) - self.v

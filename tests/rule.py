"""The rule of arXiv 2510.25042 in NumPy, written from its text alone: what DWMGrad is held to."""

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
    ):
        self.theta = np.array(theta, dtype=np.float64)
        self.s, self.v = np.zeros_like(self.theta), np.zeros_like(self.theta)
        self.lr, self.momentum, self.eps, self.weight_decay = lr, momentum, eps, weight_decay
        self.window, self.max_window, self.signal = window, max_window, signal
        self.last = None

    def step(self, loss, gradient):
        if self.signal == "loss":
            beta = loss
        elif self.signal == "increase":
            beta = loss - (self.last or 0.0)
        else:
            beta = 0.0 if self.last is None else self.last - loss
        self.last = loss
        self.window = min(self.window + 1, self.max_window) if beta > 0 else max(self.window - 1, 1)
        w = self.window
        self.s = self.s * (w - 1) / w + gradient**2 / w
        self.v = self.momentum * w / self.max_window * self.v + self.lr * gradient / (
            np.sqrt(self.s) + self.eps
        )
        self.theta = self.theta * (1 - self.lr * self.weight_decay) - self.v

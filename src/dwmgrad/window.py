"""The paper's idea, alone: a loss goes in, the window and the momentum come out."""

from __future__ import annotations

from dataclasses import dataclass

SIGNALS = ("decrease", "increase", "loss")


@dataclass
class Window:
    """How much history a step relies on: a whole number that follows the training loss.

    Each observed loss moves the window by one: up when the signal is positive, else down, and
    always within [1, max_size] (arXiv 2510.25042, Algorithm 1, steps 1 and 2).

    Args:
        size: the present window, in steps.
        max_size: its upper bound, in steps.
        signal: what counts as a reason to grow. `"decrease"`: the loss fell (the paper's text; the
            first loss only shrinks the window). `"increase"`: the loss rose, the first one compared
            with 0 (the authors' CIFAR-10 and MNIST scripts). `"loss"`: the loss is positive
            (Algorithm 1 as printed).
        last_loss: the loss observed last, or None before the first one.
        observations: how many losses have been observed.
        increases: how many of them had a positive signal.
    """

    size: int = 5
    max_size: int = 10
    signal: str = "decrease"
    last_loss: float | None = None
    observations: int = 0
    increases: int = 0

    def observe(self, loss: float) -> None:
        """Moves the window by one step for one finite loss."""
        grows = self._signal(loss) > 0
        self.size = min(self.size + 1, self.max_size) if grows else max(self.size - 1, 1)
        self.last_loss = loss
        self.observations += 1
        self.increases += grows

    def _signal(self, loss: float) -> float:
        if self.signal == "loss":
            return loss
        if self.signal == "increase":
            return loss - (0.0 if self.last_loss is None else self.last_loss)
        return 0.0 if self.last_loss is None else self.last_loss - loss

    @property
    def decay(self) -> float:
        """What is kept of the mean squared gradient: (ω − 1)/ω."""
        return (self.size - 1) / self.size

    def momentum(self, base: float) -> float:
        """The effective momentum μ = γω/δ for the base momentum γ."""
        return base * self.size / self.max_size

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
        smoothing: the share of the past in the exponential mean of the losses whose changes are
            the signal, in [0, 1); 0 takes the losses as they are.
        last_loss: the loss observed last, or None before the first one.
        mean_loss: the exponential mean; without smoothing the loss observed last.
        observations: how many losses have been observed.
        increases: how many of them had a positive signal.
    """

    size: int = 5
    max_size: int = 10
    signal: str = "decrease"
    smoothing: float = 0.0
    last_loss: float | None = None
    mean_loss: float | None = None
    observations: int = 0
    increases: int = 0

    def observe(self, loss: float, alike: bool = True) -> None:
        """Moves the window by one step for one finite loss.

        Args:
            loss: the step's loss.
            alike: whether it was made as the one before was, so that the two can be compared. If
                not, the window holds, and the comparison begins anew from this loss.
        """
        if not alike:
            self.last_loss = self.mean_loss = loss
            self.observations += 1
            return
        mean = loss
        if self.mean_loss is not None and self.smoothing:
            mean = self.smoothing * self.mean_loss + (1 - self.smoothing) * loss
        grows = self._signal(mean) > 0
        self.size = min(self.size + 1, self.max_size) if grows else max(self.size - 1, 1)
        self.last_loss, self.mean_loss = loss, mean
        self.observations += 1
        self.increases += grows

    def _signal(self, mean: float) -> float:
        if self.signal == "loss":
            return mean
        if self.signal == "increase":
            return mean - (0.0 if self.mean_loss is None else self.mean_loss)
        return 0.0 if self.mean_loss is None else self.mean_loss - mean

    def decay(self, fixed: int | None = None) -> float:
        """What a step keeps of the mean squared gradient: (ω − 1)/ω; of a fixed window, its own."""
        size = fixed or self.size
        return (size - 1) / size

    def momentum(self, base: float) -> float:
        """The effective momentum μ = γω/δ for the base momentum γ."""
        return base * self.size / self.max_size

"""Two optimizers in one process, each in its thread, share nothing."""

import threading

import torch

from dwmgrad import DWMGrad


def train(seed: int, seen: dict[int, list], start: threading.Barrier) -> None:
    generator = torch.Generator().manual_seed(seed)
    params = [torch.randn(n, generator=generator).requires_grad_() for n in (50, 300)]
    optimizer = DWMGrad(params, lr=1e-2, max_window=10 * (seed + 1))
    start.wait()
    windows = []
    for _ in range(300):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.observe_loss(float(torch.rand((), generator=generator)))
        optimizer.step()
        windows.append((optimizer.window, optimizer.last_loss))
    seen[seed] = [*windows, *(p.detach() for p in params)]


def test_threads_do_what_one_after_the_other_does() -> None:
    together: dict[int, list] = {}
    start = threading.Barrier(4)
    threads = [threading.Thread(target=train, args=(n, together, start)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone: dict[int, list] = {}
    for seed in range(4):
        train(seed, alone, threading.Barrier(1))
    for seed in range(4):
        assert together[seed][:-2] == alone[seed][:-2]
        assert all(map(torch.equal, together[seed][-2:], alone[seed][-2:]))

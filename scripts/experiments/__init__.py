"""The paper's experiments as code: workloads, contenders, and a runner that keeps every result.

A `workload.Workload` is a task with a fixed budget of optimizer steps, a `contenders.Contender` an
optimizer, and `runner.run_once` trains one on the other and files the result
as JSON. `scripts/run_experiment.py` does so for a file of `configs/experiments/`,
`scripts/compare_optimizers.py` for each optimizer's best learning rate (`configs/comparisons/`).
"""

"""Parts of bench_step.py and bench_growth.py."""

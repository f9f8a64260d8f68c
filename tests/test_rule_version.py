"""Other numbers are another version of the rule: stored runs are known by it."""

import json

import pytest
import trajectories


@pytest.mark.parametrize("case", trajectories.CASES)
def test_the_rule_does_what_its_version_did(case: str) -> None:
    """Where this fails on purpose, raise the version and run tests/trajectories.py."""
    arguments = trajectories.CASES[case]
    stored = json.loads(trajectories.STORED.read_text())[trajectories.version(arguments)][case]
    found = trajectories.trajectory(arguments)
    assert [step[0] for step in found] == [step[0] for step in stored]
    for now, then in zip(found, stored, strict=True):
        assert now == pytest.approx(then, rel=1e-9)

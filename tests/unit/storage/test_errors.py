"""Errors cross processes whole, as a pool of workers needs."""

import pickle

import pytest

from storage.errors import DataError, DigestError, Interrupted, ShardlineError


@pytest.mark.parametrize("error", [DigestError("file", "aa", "bb"), Interrupted("stopped", 15), DataError("bad")])
def test_an_error_survives_pickling(error: ShardlineError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.exit_code) == (type(error), str(error), error.exit_code)

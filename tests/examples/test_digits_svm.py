"""The example that trains a linear SVM: what it prints."""

import pytest


def test_predictions_are_identical(capsys):
    pytest.importorskip("sklearn")
    from examples import digits_svm

    digits_svm.main()
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "The 597 predictions are identical."
    accuracies = [float(line.split()[-2]) for line in lines if line.startswith("trained on")]
    assert len(accuracies) == 4 and min(accuracies) > 90

"""The example that trains a linear SVM: what it prints."""

import pytest


def test_predictions_are_identical_and_the_search_finds_good_features(capsys):
    pytest.importorskip("sklearn")
    from examples import digits_svm

    digits_svm.main({"hogtransformer__cell": [2, 8], "hogtransformer__bins": [9]})
    *lines, same, searched = capsys.readouterr().out.splitlines()
    assert same == "The 597 predictions are identical."
    accuracies = [float(line.split()[-2]) for line in lines if line.startswith("trained on")]
    assert len(accuracies) == 4 and min(accuracies) > 90
    assert searched.startswith("Of 2 choices, bins 9, cell 2 is best") and float(searched.split()[-2]) > 90

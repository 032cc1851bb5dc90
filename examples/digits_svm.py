"""A linear SVM on HOG of handwritten digits, scikit-image's and ours. Run ``python -m examples.digits_svm``.

A classifier that was trained on the one also reads the other. Then scikit-learn searches for the best cells and bins.
"""

import time

import numpy as np
import skimage.feature
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from maskfeat_kernels.compat.sklearn import HOGTransformer

TRAINING = 1200  # of 1797 digits of 8 x 8 pixels
GRID = {"hogtransformer__cell": [2, 3, 4], "hogtransformer__bins": [6, 9, 12]}


def scikit_image_hog(images: np.ndarray) -> np.ndarray:
    """The same as ``HOGTransformer(cell=2, block=2)``, image by image."""
    options = {"orientations": 9, "pixels_per_cell": (2, 2), "cells_per_block": (2, 2)}
    return np.stack([skimage.feature.hog(image, **options) for image in images])


def search(rows: np.ndarray, target: np.ndarray, grid: dict[str, list[int]]) -> GridSearchCV:  # rows: [N, 64]
    """Cross-validate a pipeline for every choice of a grid."""
    pipeline = make_pipeline(HOGTransformer(image_shape=(8, 8), block=1), LinearSVC(random_state=0))
    return GridSearchCV(pipeline, grid, cv=3).fit(rows, target)


def main(grid: dict[str, list[int]] = GRID) -> None:
    digits = load_digits()
    train, test = slice(None, TRAINING), slice(TRAINING, None)
    features, classifiers = {}, {}
    ours = HOGTransformer(cell=2, block=2).fit_transform
    for name, function in (("scikit-image", scikit_image_hog), ("ours", ours)):
        begin = time.perf_counter()
        features[name] = function(digits.images)  # [digits, features]
        seconds = time.perf_counter() - begin
        classifiers[name] = LinearSVC(random_state=0).fit(features[name][train], digits.target[train])
        print(f"{name:12}: HOG of {len(digits.images)} digits in {seconds:.3f} s")
    predictions = []
    for trained_on, classifier in classifiers.items():
        for tested_on, x in features.items():
            predictions.append(classifier.predict(x[test]))
            accuracy = (predictions[-1] == digits.target[test]).mean()
            print(f"trained on {trained_on:12} tested on {tested_on:12} accuracy {100 * accuracy:.2f} %")
    same = all(np.array_equal(prediction, predictions[0]) for prediction in predictions)
    print(f"The {len(predictions[0])} predictions are {'identical' if same else 'different'}.")

    found = search(digits.data[train], digits.target[train], grid)
    best = ", ".join(f"{name.partition('__')[2]} {value}" for name, value in found.best_params_.items())
    accuracy = found.score(digits.data[test], digits.target[test])
    print(f"Of {len(found.cv_results_['params'])} choices, {best} is best: accuracy {100 * accuracy:.2f} %")


if __name__ == "__main__":
    main()

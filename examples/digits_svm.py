"""A linear SVM on HOG of handwritten digits, scikit-image's and ours. Run ``python -m examples.digits_svm``.

A classifier that was trained on the one also reads the other.
"""

import time

import numpy as np
import skimage.feature
from sklearn.datasets import load_digits
from sklearn.svm import LinearSVC

from maskfeat_kernels.compat.skimage import hog

OPTIONS = {"orientations": 9, "pixels_per_cell": (2, 2), "cells_per_block": (2, 2)}
TRAINING = 1200  # of 1797 digits of 8 x 8 pixels


def main() -> None:
    digits = load_digits()
    train, test = slice(None, TRAINING), slice(TRAINING, None)
    features, classifiers = {}, {}
    for name, function in (("scikit-image", skimage.feature.hog), ("ours", hog)):
        begin = time.perf_counter()
        features[name] = np.stack([function(image, **OPTIONS) for image in digits.images])  # [digits, features]
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


if __name__ == "__main__":
    main()

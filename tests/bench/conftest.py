"""The toy backbone of the training tests is at hand here too."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "train"))

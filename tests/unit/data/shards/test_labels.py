import numpy as np
import pytest

from crossdistill.data.shards.labels import ShardClasses, classes_of
from crossdistill.errors import InputError


def labels_of(*texts):
    return np.array([text.encode() for text in texts])


def test_negative_labels_are_refused_and_no_class():
    labels = labels_of("2", "-1", "0", "-7")
    classes = classes_of([labels], "here")
    assert classes.names == ("0", "2")
    with pytest.raises(InputError, match=r"label '-1' of sample 1\n.*: no negative number"):
        classes.targets(labels, "sample {}".format)


def test_shards_that_hold_nothing_but_negative_labels():
    labels = labels_of("-1", "-1")
    with pytest.raises(InputError, match=r"label '-1' of sample 0\n.*: no negative number") as caught:
        classes_of([labels], "here").targets(labels, "sample {}".format)
    assert "0 classes" not in str(caught.value)


def test_a_number_without_a_class_is_told_how_many_there_are():
    with pytest.raises(InputError, match=r"label '3' of here\n.*one of the 2 classes"):
        ShardClasses.of_names(["ant", "bee"]).target("3", "here")

from crossdistill.store.compare import differences, leaves, shown


def test_trees_are_compared_as_json_key_by_key():
    stored = {"teacher": {"name": "a", "classes": [1, 2]}, "seed": 0}
    assert differences(stored, {"teacher": {"name": "a", "classes": (1, 2)}, "seed": 0}) == []
    assert differences(stored, {"teacher": {"name": "b", "classes": [1, 3]}, "size": None}) == [
        "seed: stored 0, now 'unset'",
        "size: stored 'unset', now None",
        "teacher.classes.1: stored 2, now 3",
        "teacher.name: stored 'a', now 'b'",
    ]


def test_true_is_not_one():
    assert differences({"flip": True}, {"flip": 1}) == ["flip: stored True, now 1"]


def test_empty_containers_differ_from_missing_ones():
    assert leaves({"a": {}, "b": [], "c": {"d": [1]}}) == {"a": {}, "b": [], "c.d.0": 1}
    assert differences({"a": {}}, {}) == ["a: stored {}, now 'unset'"]


def test_a_long_list_of_phrases_is_cut_short():
    assert shown([str(one) for one in range(10)]) == "0; 1; 2; 3; 4; 5; 6; 7; and 2 more"

from crossdistill.differences import differences, leaves, shown


def stored(before, now):
    return list(differences(before, now, was="stored").values())


def test_trees_are_compared_as_json_key_by_key():
    tree = {"teacher": {"name": "a", "classes": [1, 2]}, "seed": 0}
    assert stored(tree, {"teacher": {"name": "a", "classes": (1, 2)}, "seed": 0}) == []
    assert stored(tree, {"teacher": {"name": "b", "classes": [1, 3]}, "size": None}) == [
        "seed: stored 0, now 'unset'",
        "size: stored 'unset', now None",
        "teacher.classes.1: stored 2, now 3",
        "teacher.name: stored 'a', now 'b'",
    ]


def test_each_phrase_is_found_by_its_key_and_says_the_word_that_is_asked_for():
    assert differences({"train": {"lr": 0.1}}, {"train": {"lr": 0.2}}, was="was") == {
        "train.lr": "train.lr: was 0.1, now 0.2"
    }


def test_true_is_not_one():
    assert stored({"flip": True}, {"flip": 1}) == ["flip: stored True, now 1"]


def test_empty_containers_differ_from_missing_ones():
    assert leaves({"a": {}, "b": [], "c": {"d": [1]}}) == {"a": {}, "b": [], "c.d.0": 1}
    assert stored({"a": {}}, {}) == ["a: stored {}, now 'unset'"]


def test_a_long_list_of_phrases_is_cut_short():
    assert shown([str(one) for one in range(10)]) == "0; 1; 2; 3; 4; 5; 6; 7; and 2 more"
